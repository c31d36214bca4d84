import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { OperationError } from '../../model/failures.ts';
import { REFUSAL_STATUS } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import { network } from '../network.ts';
import { type InstanceNames, instanceNames } from '../queries/read-names.ts';

export interface FinishUnwindRequest extends Attempt {
  /** The sled has answered definitively that the VMM isn't there (any more), or is expunged. Otherwise its reservation is tombstoned. */
  readonly confirmed: boolean;
  /** The destination was never commanded to migrate in: then the source reports nothing either. */
  readonly neverCommanded: boolean;
  readonly error: OperationError;
  /** Its operation goes on with another attempt: only this one's VMM ends. */
  readonly goesOn?: boolean;
}

/**
 * Ends an unwind in one statement: writes `saga_unwound`, releases what the attempt held, fails its migration and
 * records the operation's outcome. An automatic start that failed through its sled gives the instance its cooldown back. Does
 * nothing a second time. The charge waits for the reservation, so that the row of
 * the sled is locked before the project's, as in a claim.
 *
 * The sled's row is locked: who gives the sled up (an expunge, a declaration that it is dead) either has ended the wait for
 * its answer already, which is read here, or comes after this and releases what is tombstoned. Else the claim on a sled
 * that was given up would be nobody's to release.
 *
 * Returns the names of an instance that names the VMM: then an update is due, and no snapshot need be read to find that out.
 * `null` where it doesn't; the row may still be waiting for one.
 */
export async function finishUnwind(db: Queryable, request: FinishUnwindRequest): Promise<InstanceNames | null> {
  const { vmmId, instanceId, goesOn = false } = request;
  const throughItsSled = request.kind === 'start' && request.error.status === REFUSAL_STATUS.ServiceUnavailable;
  const result = await db.execute(sql`/* finish-unwind */
    WITH linked AS (
      SELECT id, name, project_id, active_vmm_id, target_vmm_id FROM instance WHERE id = ${instanceId} FOR UPDATE
    ), placed AS (
      SELECT sled.policy = 'expunged' OR sled.time_declared_dead IS NOT NULL AS given_up FROM linked, vmm JOIN sled ON sled.id = vmm.sled_id
      WHERE vmm.id = ${vmmId} FOR NO KEY UPDATE OF sled
    ), answered AS (
      SELECT ${request.confirmed} OR coalesce((SELECT given_up FROM placed), false) AS definitely
    ), unwound AS (
      UPDATE vmm SET state = 'saga_unwound', failure_reason = NULL, state_generation = state_generation + 1, time_state_updated = now()
      FROM linked WHERE vmm.id = ${vmmId} AND vmm.state <> 'saga_unwound' AND vmm.unwinding_since IS NOT NULL AND vmm.time_deleted IS NULL
      RETURNING vmm.id
    ), uncharged AS (
      UPDATE instance SET time_last_auto_restarted = time_auto_restarted_before FROM unwound
      WHERE ${throughItsSled} AND instance.id = ${instanceId} AND instance.active_vmm_id = unwound.id
        AND instance.last_start_reason = 'auto_restart'
    ), released AS (
      DELETE FROM sled_reservation USING linked, answered WHERE vmm_id = ${vmmId} AND definitely RETURNING vmm_id
    ), tombstoned AS (
      UPDATE sled_reservation SET kind = 'tombstoned' FROM linked, answered WHERE vmm_id = ${vmmId} AND NOT definitely
    ), refunded AS (
      DELETE FROM provisioning_charge USING linked
      WHERE provisioning_charge.instance_id = linked.id AND linked.active_vmm_id = ${vmmId}
        AND (SELECT count(*) FROM released) >= 0
    ), unnetworked AS (
      ${network.remove(sql`SELECT id AS instance_id, ${vmmId}::uuid AS vmm_id FROM linked`)}
    ), failed AS (
      UPDATE migration SET
        target_state = CASE WHEN target_state IN ('completed', 'failed') THEN target_state ELSE 'failed'::migration_state END,
        target_generation = target_generation + 1, time_target_updated = now(),
        source_state = CASE WHEN ${request.neverCommanded} AND source_state NOT IN ('completed', 'failed') THEN 'failed'::migration_state ELSE source_state END,
        source_generation = source_generation + CASE WHEN ${request.neverCommanded} THEN 1 ELSE 0 END
      FROM linked WHERE migration.target_vmm_id = ${vmmId} AND target_state NOT IN ('completed', 'failed')
    ), ended AS (
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, error, time_ended)
      SELECT ${request.operationId}, ${request.kind}, id, ${vmmId}, ${request.workflowId}, false, ${JSON.stringify(request.error)}::jsonb, now()
      FROM linked WHERE NOT ${goesOn}::boolean
      ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
      WHERE operation.time_ended IS NULL
    )
    SELECT linked.name AS instance, project.name AS project FROM linked JOIN project ON project.id = linked.project_id
    WHERE ${vmmId} IN (active_vmm_id, target_vmm_id)`);
  const row = result.rows[0];
  return row === undefined ? null : instanceNames.parse(row);
}
