/**
 * The two transactions of an unwind. Between them the sled is asked to unregister the VMM; from the first one on no
 * report and no verdict is written to its row, and the last one writes `saga_unwound` over whatever it says.
 * Neither touches the instance's ids or generation: those are the update saga's.
 */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { OperationError } from '../../model/failures.ts';
import type { Refusal } from '../../model/refusal.ts';
import { type OperationKind, SLED_POLICIES, VMM_STATES } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { network } from '../network.ts';

const begunRow = z.object({
  state: z.enum(VMM_STATES),
  sledId: z.string().nullable(),
  sledName: z.string().nullable(),
  sledAddress: z.string().nullable(),
  sledPolicy: z.enum(SLED_POLICIES).nullable(),
  commanded: z.boolean(),
  vouched: z.boolean(),
  spared: z.boolean(),
});

export interface BegunUnwind {
  /** The guest runs after all, here (asked for by `spareRunning`) or where it moved, so nothing was marked. */
  readonly spared: boolean;
  /** Where the VMM may be registered; `null` when its claim never arrived, or its sled was given up. */
  readonly sled: { readonly name: string; readonly address: string } | null;
  /** The sled was told, or was about to be told, to run the guest or migrate it in. */
  readonly commanded: boolean;
}

/**
 * Begins an unwind: marks the VMM as unwinding. When its claim never arrived it writes the `saga_unwound` row itself, so
 * that the claim can't arrive later. With `spareRunning` a VMM is left alone whose sled has reported that its guest ran, or
 * that it was migrating in: whatever the saga was told, that guest is not its to end. A start's VMM whose guest has moved
 * on is left alone in any case: that its sled doesn't know it any more is how a migration ends, and the start had succeeded.
 */
export async function beginUnwind(
  db: Database,
  request: { kind: OperationKind; instanceId: string; vmmId: string; spareRunning: boolean },
): Promise<BegunUnwind> {
  const row = await retryOnConflict(() =>
    db.transaction(async (transaction) => {
      await burnVmmId(transaction, request);
      // Locked by a statement of its own: a report that holds the VMM may be writing its side of the migration, and only a
      // statement that begins after the report has committed sees it.
      await transaction.execute(sql`/* begin-unwind */ SELECT 1 FROM vmm WHERE id = ${request.vmmId} FOR UPDATE`);
      const result = await transaction.execute(sql`/* begin-unwind */
        WITH marked AS (
          UPDATE vmm SET unwinding_since = coalesce(unwinding_since, now())
          WHERE id = ${request.vmmId}
            AND NOT (${request.spareRunning} AND unwinding_since IS NULL AND CASE WHEN ${request.kind} = 'start'
              THEN state IN ('running', 'rebooting', 'migrating')
              ELSE EXISTS (SELECT 1 FROM migration WHERE target_vmm_id = vmm.id AND target_state IN ('in_progress', 'completed')) END)
            AND NOT (${request.kind} = 'start' AND unwinding_since IS NULL AND EXISTS (
              SELECT 1 FROM migration WHERE source_vmm_id = vmm.id AND 'completed' IN (source_state, target_state)))
          RETURNING id
        )
        SELECT vmm.state, sled.id AS "sledId", sled.name AS "sledName", sled.address AS "sledAddress",
          sled.policy AS "sledPolicy", vmm.commanded_at IS NOT NULL AS commanded,
           vmm.vouched_gone_at IS NOT NULL AS vouched, NOT EXISTS (SELECT 1 FROM marked) AS spared
        FROM vmm LEFT JOIN sled ON sled.id = vmm.sled_id WHERE vmm.id = ${request.vmmId}`);
      return begunRow.parse(result.rows[0]);
    }),
  );
  const reachable = row.sledAddress !== null && row.sledName !== null && row.sledPolicy !== 'expunged' && !row.vouched;
  return {
    spared: row.spared,
    sled: reachable ? { name: row.sledName ?? '', address: row.sledAddress ?? '' } : null,
    commanded: row.commanded,
  };
}

/** Makes sure that a VMM id is taken: where its claim has not arrived, it never will. */
export async function burnVmmId(db: Queryable, vmm: { instanceId: string; vmmId: string }): Promise<void> {
  await db.execute(sql`/* burn-vmm-id */
    INSERT INTO vmm (id, instance_id, state, unwinding_since, time_deleted)
    SELECT ${vmm.vmmId}, id, 'saga_unwound', now(), now() FROM instance WHERE id = ${vmm.instanceId}
    ON CONFLICT (id) DO NOTHING`);
}

export interface FinishUnwindRequest {
  readonly kind: OperationKind;
  readonly instanceId: string;
  readonly vmmId: string;
  readonly operationId: string;
  readonly workflowId: string;
  /** The sled has said for certain that the VMM isn't there (any more), or is expunged. Otherwise the claim on it is tombstoned. */
  readonly confirmed: boolean;
  /** The destination was never told to migrate in: then the source has nothing to say either. */
  readonly neverCommanded: boolean;
  readonly error: OperationError;
}

/**
 * Ends an unwind in one statement: writes `saga_unwound`, releases what the attempt held, fails its migration and
 * records the operation's outcome. Does nothing a second time. The charge waits for the reservation, so that the row of
 * the sled is locked before the project's, as in a claim.
 *
 * The sled's row is locked: who gives the sled up (an expunge, a declaration that it is dead) either has ended the wait for
 * its answer already, which is read here, or comes after this and releases what is tombstoned. Else the claim on a sled
 * that was given up would be nobody's to release.
 */
export async function finishUnwind(db: Queryable, request: FinishUnwindRequest): Promise<void> {
  const { vmmId, instanceId } = request;
  await db.execute(sql`/* finish-unwind */
    WITH linked AS (
      SELECT id, active_vmm_id FROM instance WHERE id = ${instanceId} FOR UPDATE
    ), placed AS (
      SELECT sled.policy = 'expunged' OR sled.time_declared_dead IS NOT NULL AS given_up FROM linked, vmm JOIN sled ON sled.id = vmm.sled_id
      WHERE vmm.id = ${vmmId} FOR NO KEY UPDATE OF sled
    ), answered AS (
      SELECT ${request.confirmed} OR coalesce((SELECT given_up FROM placed), false) AS definitely
    ), unwound AS (
      UPDATE vmm SET state = 'saga_unwound', failure_reason = NULL, state_generation = state_generation + 1, time_state_updated = now()
      FROM linked WHERE vmm.id = ${vmmId} AND vmm.state <> 'saga_unwound' AND vmm.unwinding_since IS NOT NULL AND vmm.time_deleted IS NULL
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
      FROM linked WHERE target_vmm_id = ${vmmId} AND target_state NOT IN ('completed', 'failed')
    )
    INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, error, time_ended)
    SELECT ${request.operationId}, ${request.kind}, id, ${vmmId}, ${request.workflowId}, false, ${JSON.stringify(request.error)}::jsonb, now()
    FROM linked
    ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}

/** Records that an operation was refused before anything was written. */
export async function recordRefusedOperation(
  db: Queryable,
  operation: { kind: OperationKind; instanceId: string; operationId: string; workflowId: string; error: Refusal },
): Promise<void> {
  const error: OperationError = {
    status: operation.error.status,
    error_code: operation.error.code,
    message: operation.error.message,
  };
  await db.execute(sql`/* refuse-operation */
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, error, time_ended)
    SELECT ${operation.operationId}, ${operation.kind}, id, ${operation.workflowId}, false, ${JSON.stringify(error)}::jsonb, now()
    FROM instance WHERE id = ${operation.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}

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

/** Records that an operation succeeded. Does nothing a second time. */
export async function recordSucceededOperation(
  db: Queryable,
  operation: { kind: OperationKind; instanceId: string; vmmId: string; operationId: string; workflowId: string },
): Promise<void> {
  await db.execute(sql`/* succeed-operation */
    INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
    SELECT ${operation.operationId}, ${operation.kind}, id, ${operation.vmmId}, ${operation.workflowId}, true, now()
    FROM instance WHERE id = ${operation.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = true, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}
