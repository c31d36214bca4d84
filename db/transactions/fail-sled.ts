import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { failLivingVmms, failTheirSides, GIVING_UP } from './fail-living-vmms.ts';

/**
 * Fails what lives on a sled whose row is locked, in the transaction that gives it up: its VMMs, for `reason`, and the
 * sides of their migrations; and releases what was held for VMMs that its answer was awaited for. A VMM that its saga is
 * unwinding is left to the saga. Returns the VMMs that were failed, and the instances whose records may need an update.
 */
export async function failSledVmms(
  transaction: Queryable,
  why: { readonly by: 'expunge-sled' | 'declare-dead'; readonly sledId: string; readonly reason: string },
): Promise<{ failed: string[]; instanceIds: string[] }> {
  const { by, sledId, reason } = why;
  const onSled = sql`vmm.sled_id = ${sledId}`;
  const failed = await failLivingVmms(transaction, by, onSled, reason);
  await failTheirSides(transaction, by, onSled);
  const released = await transaction.execute(sql`${GIVING_UP[by]}
    DELETE FROM sled_reservation USING vmm WHERE vmm.id = vmm_id AND ${onSled} AND vmm.state = 'saga_unwound'
    RETURNING sled_reservation.instance_id`);
  const instanceIds = [...failed.map((vmm) => vmm.instanceId), ...released.rows.map((row) => String(row.instance_id))];
  return { failed: failed.map((vmm) => vmm.id), instanceIds: [...new Set(instanceIds)] };
}
