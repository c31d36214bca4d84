import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * The sled has answered for a VMM that was unwound while it was silent: releases what was tombstoned for it. Returns
 * whether there was anything to release; the update saga retires the row then.
 */
export async function releaseUnwound(db: Queryable, vmmId: string): Promise<boolean> {
  const result = await db.execute(sql`/* release-unwound */
    DELETE FROM sled_reservation USING vmm
    WHERE vmm_id = ${vmmId} AND vmm.id = vmm_id AND vmm.state = 'saga_unwound'
    RETURNING vmm_id`);
  return result.rows.length > 0;
}
