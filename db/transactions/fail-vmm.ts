import { sql } from 'drizzle-orm';
import { type AutomaticAction, auditStatement, automaticRecord } from '../audit-record.ts';
import type { Queryable } from '../connect.ts';

/**
 * The control plane's own verdict that a VMM is lost: its sled answers that it does not know it, or an operator vouches for
 * it. Nothing is written to a VMM that is gone, unwinding, or still `creating` (its sled may not know it yet). It
 * leaves open the VMM's side of a migration (case 4 of section 6 of docs/design.md). Returns the instance's id when it
 * wrote, else `null`.
 * `by` is who came to the verdict where nobody asked for it: the verdict is on the audit log then, in the same statement.
 */
export async function failVmm(
  db: Queryable,
  vmmId: string,
  reason: string,
  by: Pick<AutomaticAction, 'actorName' | 'runId' | 'workflowId'> | null = null,
): Promise<string | null> {
  const action = { operation: 'vmm_fail', subjectKind: 'vmm' as const, subject: vmmId };
  const record = by === null ? null : automaticRecord({ ...action, ...by }, { result: 'success', httpStatus: null });
  const update = sql`UPDATE vmm SET state = 'failed', failure_reason = ${reason}, state_generation = state_generation + 1, time_state_updated = now()
    WHERE id = ${vmmId} AND time_deleted IS NULL AND unwinding_since IS NULL
      AND state NOT IN ('creating', 'destroyed', 'failed', 'saga_unwound')
    RETURNING instance_id`;
  const result = await db.execute(
    record === null
      ? sql`/* fail-vmm */ ${update}`
      : sql`/* fail-vmm */ WITH failed AS (${update}), recorded AS (${auditStatement(record, {
          from: sql`failed JOIN instance ON instance.id = failed.instance_id`,
          projectId: sql`instance.project_id`,
        })}) SELECT instance_id FROM failed`,
  );
  const row = result.rows[0];
  return row === undefined ? null : String(row.instance_id);
}
