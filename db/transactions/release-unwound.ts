import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * The sled has answered for a VMM that was unwound while it was silent: releases what was tombstoned for it, and retires
 * the row unless the instance still names it. Returns whether there was anything to release.
 */
export async function releaseUnwound(db: Queryable, vmmId: string): Promise<boolean> {
  const result = await db.execute(sql`/* release-unwound */
    WITH gone AS (
      SELECT id, instance_id FROM vmm WHERE id = ${vmmId} AND state = 'saga_unwound'
    ), released AS (
      DELETE FROM sled_reservation USING gone WHERE vmm_id = gone.id RETURNING vmm_id
    )
    SELECT vmm_id FROM released`);
  return result.rows.length > 0;
}
