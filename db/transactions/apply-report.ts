import { type SQL, sql } from 'drizzle-orm';
import { z } from 'zod';
import { IDENTITY_REFUSALS, type IdentityRefusal } from '../../model/identity.ts';
import { INTENDED_STATES, type IntendedState, isGoneVmmState, VMM_STATES, type VmmState } from '../../model/states.ts';
import type { MigrationRuntime, SledVmmState } from '../../wire/sled-protocol.ts';
import type { Queryable } from '../connect.ts';
import type { InstanceNames } from '../queries/read-names.ts';

const subjectRow = z.object({
  instance_id: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  deleted: z.boolean(),
  intended_state: z.enum(INTENDED_STATES),
  wrote: z.boolean(),
  commanded: z.boolean(),
  alone: z.boolean(),
  instance_name: z.string(),
  project_name: z.string(),
  refusal: z.enum(IDENTITY_REFUSALS).nullable(),
  sled_expunged: z.boolean(),
});

/**
 * Who reports. `control_plane`: the answer to a call of ours, from the sled that was called. `sled`: one that showed its
 * certificate; a report on another sled's VMM is refused. `anybody`: no certificate was shown, which will do only for a
 * sled without an identity. `agentId`: the agent that it says it is; one that isn't the sled's own, where that is known, speaks
 * of none of its VMMs; a sled that has joined is known by its certificate instead.
 */
export type ReportSource = { readonly agentId?: string | undefined } & (
  | { readonly kind: 'control_plane' | 'anybody' }
  | { readonly kind: 'sled'; readonly sledId: string; readonly serial: string }
);

export interface AppliedReport {
  readonly instanceId: string;
  /** `unwound`: its saga unwinds or has unwound the VMM, so nothing was written, not even the operation's success. */
  readonly verdict: 'applied' | 'unwound';
  /** Whether the report said anything that was not known yet. */
  readonly wrote: boolean;
  /** The VMM's state after it. */
  readonly state: VmmState;
  readonly intendedState: IntendedState;
  /** Its sled may have been commanded to run the guest or migrate it in: `markCommanded` has marked it, now or before. */
  readonly commanded: boolean;
  /**
   * Whether the stored state needs an update: `null` when only a snapshot can say. An instance that is alone with its active
   * VMM (no migration, no other VMM) needs one if that is gone, and none otherwise, whatever else holds.
   */
  readonly needsUpdate: boolean | null;
  /** What people know the instance by. */
  readonly names: InstanceNames;
  /** Why the report is refused for the sake of who made it; then nothing was written. `null`: it is not. */
  readonly refusal: IdentityRefusal | null;
  /** An operator has expunged the sled that the VMM is placed on: whoever reports of it is to end it. */
  readonly sledExpunged: boolean;
}

const NO_MIGRATION = { migration_id: null, state: 'pending', gen: 0 } as const;

/**
 * Applies a sled agent's report in one statement: the VMM's row only if the report's generation is newer and the VMM is
 * neither gone nor unwinding; each migration side only if this VMM is that side, the generation is newer and the side is
 * not over. Returns `null` for a VMM that is unknown or deleted. Source: section 7 of docs/design.md.
 *
 * `source` says who reports: the check that it may report on this VMM is part of the statement.
 * `saga` is for the sagas' own steps: `markCommanded` marks, in the same statement, that the sled is about to be commanded
 * to run the guest or migrate it in (only while the user wants it to run, the VMM is not gone, and its sled not expunged); `succeed` records the
 * operation's success. Neither is written of a VMM that is being unwound, or was: of an operation's success and the unwind
 * of its VMM, whichever takes the lock of the VMM's row first is the only one.
 */
export async function applyReport(
  db: Queryable,
  vmmId: string,
  report: SledVmmState,
  saga: { markCommanded?: boolean; succeed?: { operationId: string } } = {},
  source: ReportSource = { kind: 'control_plane' },
): Promise<AppliedReport | null> {
  const { vmm_state: reported } = report;
  const { sledId, serial } = source.kind === 'sled' ? source : { sledId: null, serial: null };
  const result = await db.execute(sql`/* apply-report */
    WITH subject AS (
      SELECT vmm.id, instance_id, state, commanded_at, unwinding_since IS NOT NULL AS unwinding, time_deleted IS NOT NULL AS deleted,
        coalesce(sled.policy = 'expunged' OR sled.expunging_since IS NOT NULL, false) AS sled_expunged,
        state NOT IN ('destroyed', 'failed') AS alive, state_generation < ${reported.gen}::bigint AS newer,
        CASE
          WHEN ${source.kind} = 'control_plane' THEN NULL
          WHEN ${source.kind} = 'anybody' AND sled.identified THEN 'no_certificate'
          WHEN ${source.kind} = 'sled' AND (SELECT policy FROM sled reporter WHERE reporter.id = ${sledId}::uuid) = 'expunged' THEN 'expunged'
          WHEN ${source.kind} = 'sled' AND NOT EXISTS (SELECT 1 FROM sled_certificate WHERE serial = ${serial} AND sled_id = ${sledId}::uuid AND time_revoked IS NULL)
            THEN CASE WHEN (SELECT expunging_since FROM sled reporter WHERE reporter.id = ${sledId}::uuid) IS NULL THEN 'revoked' ELSE 'expunged' END
          WHEN ${source.kind} = 'sled' AND vmm.sled_id IS DISTINCT FROM ${sledId}::uuid THEN 'foreign_vmm'
          WHEN NOT sled.identified AND sled.kept_agent_id::text <> ${source.agentId?.toLowerCase() ?? null}::text THEN 'foreign_agent'
        END AS refusal
      FROM vmm LEFT JOIN sled ON sled.id = vmm.sled_id WHERE vmm.id = ${vmmId} FOR UPDATE OF vmm
    ), open AS (
      SELECT id, newer AND alive AS takes_state FROM subject
      WHERE NOT unwinding AND NOT deleted AND state <> 'saga_unwound' AND refusal IS NULL
    ), wanted AS (
      SELECT instance.id, instance.name, instance.project_id, instance.intended_state, instance.intended_state = 'running' AND subject.alive AND NOT subject.sled_expunged AS runs,
        instance.state = 'vmm' AND instance.active_vmm_id = subject.id AND instance.migration_id IS NULL
          AND NOT EXISTS (SELECT 1 FROM vmm other WHERE other.instance_id = instance.id AND other.time_deleted IS NULL
            AND other.id <> subject.id) AS alone
      FROM instance JOIN subject ON subject.instance_id = instance.id
    ), wrote AS (
      UPDATE vmm SET
        state = CASE WHEN takes_state THEN ${reported.state}::vmm_state ELSE vmm.state END,
        state_generation = CASE WHEN takes_state THEN ${reported.gen}::bigint ELSE vmm.state_generation END,
        failure_reason = CASE WHEN takes_state AND ${reported.state} = 'failed' THEN 'its sled agent reported it failed' ELSE vmm.failure_reason END,
        time_state_updated = CASE WHEN takes_state THEN now() ELSE vmm.time_state_updated END,
        commanded_at = CASE WHEN ${saga.markCommanded ?? false} AND wanted.runs THEN coalesce(vmm.commanded_at, now()) ELSE vmm.commanded_at END
      FROM open, wanted
      WHERE vmm.id = open.id AND (takes_state OR (${saga.markCommanded ?? false} AND wanted.runs AND vmm.commanded_at IS NULL))
      RETURNING vmm.id, vmm.state, vmm.commanded_at
    ), side_out AS (${writeSide('source', report.migration_out ?? NO_MIGRATION)}
    ), side_in AS (${writeSide('target', report.migration_in ?? NO_MIGRATION)}
    ), succeeded AS (
      UPDATE operation SET succeeded = true, time_ended = now() FROM open
      WHERE operation.id = ${saga.succeed?.operationId ?? null}::uuid AND time_ended IS NULL
    )
    SELECT subject.instance_id, coalesce((SELECT wrote.state FROM wrote), subject.state) AS state, subject.unwinding, subject.deleted,
      wanted.intended_state, coalesce((SELECT wrote.commanded_at FROM wrote), subject.commanded_at) IS NOT NULL AS commanded,
      coalesce(wanted.alone, false) AS alone, subject.refusal, subject.sled_expunged, wanted.name AS instance_name,
      (SELECT name FROM project WHERE id = wanted.project_id) AS project_name,
      EXISTS (SELECT 1 FROM wrote) OR EXISTS (SELECT 1 FROM side_out) OR EXISTS (SELECT 1 FROM side_in) AS wrote
    FROM subject, wanted`);
  const found = result.rows[0];
  if (found === undefined) return null;
  const row = subjectRow.parse(found);
  if (row.deleted) return null;
  return {
    instanceId: row.instance_id,
    verdict: row.unwinding || row.state === 'saga_unwound' ? 'unwound' : 'applied',
    wrote: row.wrote,
    state: row.state,
    intendedState: row.intended_state,
    commanded: row.commanded,
    needsUpdate: row.alone ? isGoneVmmState(row.state) : null,
    names: { instance: row.instance_name, project: row.project_name },
    refusal: row.refusal,
    sledExpunged: row.sled_expunged,
  };
}

/** The part that writes one side of a migration, where the VMM that reports is that side. */
function writeSide(side: 'source' | 'target', runtime: MigrationRuntime | typeof NO_MIGRATION): SQL {
  const [state, generation] = [sql.identifier(`${side}_state`), sql.identifier(`${side}_generation`)];
  return sql`
      UPDATE migration SET ${state} = ${runtime.state}::migration_state, ${generation} = ${runtime.gen}::bigint,
        ${sql.identifier(`time_${side}_updated`)} = now()
      FROM open
      WHERE migration.id = ${runtime.migration_id}::uuid AND ${sql.identifier(`${side}_vmm_id`)} = open.id
        AND ${state} NOT IN ('completed', 'failed') AND ${generation} < ${runtime.gen}::bigint
      RETURNING migration.id`;
}
