import { and, asc, eq, gt, isNull, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { accessToken } from '../schema.ts';

export type AccessTokenRow = typeof accessToken.$inferSelect;

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

/** Lists at most `limit` tokens that are not revoked, by name after `after`; only a project's where `projectId` is given. */
export async function listTokens(
  db: Queryable,
  query: { projectId: string | null; after: string | null; limit: number },
): Promise<AccessTokenRow[]> {
  return db
    .select()
    .from(accessToken)
    .where(
      and(
        isNull(accessToken.timeRevoked),
        query.projectId === null ? undefined : eq(accessToken.projectId, query.projectId),
        query.after === null ? undefined : gt(accessToken.name, query.after),
      ),
    )
    .orderBy(asc(accessToken.name))
    .limit(query.limit);
}

/** Finds a token that is not revoked, by its id or its name; `null` when there is none. */
export async function findToken(db: Queryable, named: string, isId: boolean): Promise<AccessTokenRow | null> {
  const [row] = await db
    .select()
    .from(accessToken)
    .where(and(isId ? eq(accessToken.id, named) : eq(accessToken.name, named), isNull(accessToken.timeRevoked)));
  return row ?? null;
}
