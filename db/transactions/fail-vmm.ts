import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * The control plane's own verdict that a VMM is lost: its sled says that it does not know it, or an operator vouches for
 * it. Nothing is written to a VMM that is gone, unwinding, or still `creating` (its sled may not know it yet). It says
 * nothing about the VMM's side of a migration (case 4 of section 6). Returns the instance's id when it wrote, else `null`.
 */
export async function failVmm(db: Queryable, vmmId: string, reason: string): Promise<string | null> {
  const result = await db.execute(sql`/* fail-vmm */
    UPDATE vmm SET state = 'failed', failure_reason = ${reason}, state_generation = state_generation + 1, time_state_updated = now()
    WHERE id = ${vmmId} AND time_deleted IS NULL AND unwinding_since IS NULL
      AND state NOT IN ('creating', 'destroyed', 'failed', 'saga_unwound')
    RETURNING instance_id`);
  const row = result.rows[0];
  return row === undefined ? null : String(row.instance_id);
}
