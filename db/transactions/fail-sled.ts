import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** The transactions that give a whole sled up, by the tags of their statements. */
const TAGS = {
  'expunge-sled': sql.raw('/* expunge-sled */'),
  'declare-dead': sql.raw('/* declare-dead */'),
} as const;

/**
 * Fails what lives on a sled whose row is locked, in the transaction that gives it up: its VMMs, for `reason`, and the
 * sides of their migrations; and releases what was held for VMMs that its answer was awaited for. A VMM that its saga is
 * unwinding is left to the saga. Returns the VMMs that were failed, and the instances whose records may need an update.
 */
export async function failSledVmms(
  transaction: Queryable,
  why: { readonly tag: keyof typeof TAGS; readonly sledId: string; readonly reason: string },
): Promise<{ failed: string[]; instanceIds: string[] }> {
  const { sledId, reason } = why;
  const tag = TAGS[why.tag];
  const failed = await transaction.execute(sql`${tag}
    UPDATE vmm SET state = 'failed', failure_reason = ${reason}, state_generation = state_generation + 1, time_state_updated = now()
    WHERE sled_id = ${sledId} AND time_deleted IS NULL AND unwinding_since IS NULL AND state NOT IN ('destroyed', 'failed', 'saga_unwound')
    RETURNING id, instance_id`);
  await transaction.execute(sql`${tag}
    UPDATE migration SET source_state = 'failed', source_generation = source_generation + 1, time_source_updated = now()
    FROM vmm WHERE vmm.id = source_vmm_id AND vmm.sled_id = ${sledId} AND vmm.state = 'failed' AND vmm.time_deleted IS NULL
      AND source_state NOT IN ('completed', 'failed')`);
  await transaction.execute(sql`${tag}
    UPDATE migration SET target_state = 'failed', target_generation = target_generation + 1, time_target_updated = now()
    FROM vmm WHERE vmm.id = target_vmm_id AND vmm.sled_id = ${sledId} AND vmm.state = 'failed' AND vmm.time_deleted IS NULL
      AND target_state NOT IN ('completed', 'failed')`);
  const released = await transaction.execute(sql`${tag}
    DELETE FROM sled_reservation USING vmm WHERE vmm.id = vmm_id AND vmm.sled_id = ${sledId} AND vmm.state = 'saga_unwound'
    RETURNING sled_reservation.instance_id`);
  return {
    failed: failed.rows.map((row) => String(row.id)),
    instanceIds: [...new Set([...failed.rows, ...released.rows].map((row) => String(row.instance_id)))],
  };
}
