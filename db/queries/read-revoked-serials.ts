import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** The certificates that haven't expired and are good no more: revoked, or of a sled that was expunged. */
export async function readRevokedSerials(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`/* sled-identity */
    SELECT serial FROM sled_certificate JOIN sled ON sled.id = sled_id
    WHERE time_expires > now() AND (time_revoked IS NOT NULL OR policy = 'expunged') ORDER BY serial`);
  return result.rows.map((row) => String(row.serial));
}
