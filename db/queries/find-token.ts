import { and, eq, isNull, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { type AccessTokenRow, accessToken } from '../schema.ts';

/** Finds the token of a secret by its hash, with whether it has expired on the database's clock; `null`: nobody's. */
export async function findTokenByHash(
  db: Queryable,
  secretHash: Buffer,
): Promise<{ token: AccessTokenRow; expired: boolean } | null> {
  const [row] = await db
    .select({ token: accessToken, expired: sql<boolean>`coalesce(${accessToken.timeExpires} <= now(), false)` })
    .from(accessToken)
    .where(eq(accessToken.secretHash, secretHash));
  return row ?? null;
}

/** Finds a token that is not revoked, by its id or its name; `null` when there is none. */
export async function findToken(db: Queryable, named: string, isId: boolean): Promise<AccessTokenRow | null> {
  const [row] = await db
    .select()
    .from(accessToken)
    .where(and(isId ? eq(accessToken.id, named) : eq(accessToken.name, named), isNull(accessToken.timeRevoked)));
  return row ?? null;
}
