import { type SQL, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

/** The transactions in which an operator or a lapsed lease ends VMMs whose sleds do not answer, by the tags of their statements. */
export const GIVING_UP = {
  'force-stop': sql.raw('/* force-stop */'),
  'expunge-sled': sql.raw('/* expunge-sled */'),
  'declare-dead': sql.raw('/* declare-dead */'),
} as const;

/**
 * Fails those of some VMMs (`which` is a condition on `vmm`) that live, for `reason`. A VMM that its saga is unwinding is
 * left to the saga. Returns those that were failed, with their instances.
 */
export async function failLivingVmms(
  transaction: Queryable,
  by: keyof typeof GIVING_UP,
  which: SQL,
  reason: string,
): Promise<{ id: string; instanceId: string }[]> {
  const failed = await transaction.execute(sql`${GIVING_UP[by]}
    UPDATE vmm SET state = 'failed', failure_reason = ${reason}, state_generation = state_generation + 1, time_state_updated = now()
    WHERE ${which} AND time_deleted IS NULL AND unwinding_since IS NULL AND state NOT IN ${goneStates}
    RETURNING id, instance_id`);
  return failed.rows.map((row) => ({ id: String(row.id), instanceId: String(row.instance_id) }));
}

/** Fails the sides of migrations that are not over, of those of some VMMs (`which` as above) that are failed. */
export async function failTheirSides(transaction: Queryable, by: keyof typeof GIVING_UP, which: SQL): Promise<void> {
  await transaction.execute(sql`${GIVING_UP[by]}
    UPDATE migration SET source_state = 'failed', source_generation = source_generation + 1, time_source_updated = now()
    FROM vmm WHERE vmm.id = source_vmm_id AND ${which} AND vmm.state = 'failed' AND vmm.time_deleted IS NULL
      AND source_state NOT IN ('completed', 'failed')`);
  await transaction.execute(sql`${GIVING_UP[by]}
    UPDATE migration SET target_state = 'failed', target_generation = target_generation + 1, time_target_updated = now()
    FROM vmm WHERE vmm.id = target_vmm_id AND ${which} AND vmm.state = 'failed' AND vmm.time_deleted IS NULL
      AND target_state NOT IN ('completed', 'failed')`);
}
