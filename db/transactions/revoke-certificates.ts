import { sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';

/**
 * Revokes every certificate of a sled: its reports are refused, and it gets no more commands, until it joins again. Returns
 * how many were good until now. Throws a {@link Refusal} when there is no such sled, or it has no identity.
 */
export async function revokeCertificates(db: Database, sledId: string): Promise<number> {
  return db.transaction(async (transaction) => {
    const found = await transaction.execute(
      sql`/* revoke-certificates */ SELECT name, identified FROM sled WHERE id = ${sledId} FOR UPDATE`,
    );
    const row = found.rows[0];
    if (row === undefined) throw Refusal.notFound('sled', sledId);
    if (row.identified !== true)
      throw Refusal.conflict(`sled "${row.name}" has no certificates: it was added without an identity`);
    const revoked = await transaction.execute(sql`/* revoke-certificates */
      UPDATE sled_certificate SET time_revoked = now() WHERE sled_id = ${sledId} AND time_revoked IS NULL`);
    return revoked.rowCount ?? 0;
  });
}
