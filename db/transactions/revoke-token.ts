import { and, eq, isNull, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { type AccessTokenRow, accessToken } from '../schema.ts';

/** Revokes a token: the next request that carries it is refused. Throws a {@link Refusal} when it is revoked already. */
export async function revokeToken(db: Database, token: Pick<AccessTokenRow, 'id' | 'name'>): Promise<void> {
  await db.transaction(async (transaction) => {
    const revoked = await transaction
      .update(accessToken)
      .set({ timeRevoked: sql`now()` })
      .where(and(eq(accessToken.id, token.id), isNull(accessToken.timeRevoked)))
      .returning({ id: accessToken.id });
    if (revoked.length === 0) throw Refusal.notFound('token', token.name);
  });
}
