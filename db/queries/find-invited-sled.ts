import { and, eq, isNull, ne, or, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { sled, sledInvite } from '../schema.ts';
import type { SledRow } from './read-sled.ts';

/**
 * Finds the sled that joins again by an invitation that is good: by the hash of its secret, unused or used for this key. `null`
 * where there is no such invitation, or its sled is new.
 */
export async function findInvitedSled(
  db: Queryable,
  { secretHash, keyFingerprint }: { readonly secretHash: string; readonly keyFingerprint: string },
): Promise<SledRow | null> {
  const [row] = await db
    .select({ sled })
    .from(sledInvite)
    .innerJoin(sled, and(eq(sled.name, sledInvite.sledName), ne(sled.policy, 'expunged')))
    .where(
      and(
        eq(sledInvite.secretHash, secretHash),
        sql`${sledInvite.timeExpires} > now()`,
        or(isNull(sledInvite.timeUsed), eq(sledInvite.keyFingerprint, keyFingerprint)),
      ),
    );
  return row?.sled ?? null;
}
