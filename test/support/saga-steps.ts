/**
 * The sagas' database steps without their workflows: what a start or a migration writes, in its order, and what a sled
 * reports. For tests that need an instance in some state, and for those that interleave the steps.
 */
import { randomUUID } from 'node:crypto';
import type { Database } from '../../db/connect.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { type ClaimedMigration, claimMigration } from '../../db/transactions/claim-migration.ts';
import { type ClaimedVmm, claimStart } from '../../db/transactions/claim-start.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import type { Attempt } from '../../model/attempt.ts';
import type { OperationError } from '../../model/failures.ts';
import type { MigrationState, OperationKind, WireVmmState } from '../../model/states.ts';
import type { SledVmmState } from '../../wire/sled-protocol.ts';

/** An attempt of either saga: a start makes nothing of its migration's id. */
export interface SagaAttempt extends Attempt {
  readonly migrationId: string;
}

export function newAttempt(kind: OperationKind, instanceId: string): SagaAttempt {
  return {
    kind,
    instanceId,
    vmmId: randomUUID(),
    migrationId: randomUUID(),
    operationId: randomUUID(),
    workflowId: `instance-${kind}/${instanceId}`,
  };
}

type Side = { readonly id: string; readonly state: MigrationState; readonly gen: number };

/** A sled's report of a VMM. */
export function vmmReport(state: WireVmmState, gen: number, sides: { in?: Side; out?: Side } = {}): SledVmmState {
  const time_updated = new Date(0).toISOString();
  const side = (one: Side) => ({ migration_id: one.id, state: one.state, gen: one.gen, time_updated });
  return {
    vmm_state: { state, gen, time_updated },
    ...(sides.in === undefined ? {} : { migration_in: side(sides.in) }),
    ...(sides.out === undefined ? {} : { migration_out: side(sides.out) }),
  };
}

/** Claims a start. Throws where it isn't claimed. */
export async function claimedStart(db: Database, attempt: Attempt): Promise<ClaimedVmm> {
  const claim = await claimStart(db, { ...attempt, reason: 'user' });
  if (claim === null) throw new Error('the instance is started already');
  return claim;
}

/** Claims a migration. Throws where it isn't claimed. */
export async function claimedMigration(
  db: Database,
  attempt: SagaAttempt,
  destinationSledId: string,
): Promise<ClaimedMigration> {
  const claimed = await claimMigration(db, { ...attempt, destinationSledId });
  if (claimed.outcome !== 'claimed') throw new Error(`the migration's claim: ${claimed.outcome}`);
  return claimed.claim;
}

/** Brings a stopped instance to running; returns the attempt whose VMM it has. */
export async function startedInstance(db: Database, instanceId: string): Promise<SagaAttempt & { sledId: string }> {
  const attempt = newAttempt('start', instanceId);
  const { sledId } = await claimedStart(db, attempt);
  await applyReport(db, attempt.vmmId, vmmReport('starting', 2), { markCommanded: true });
  await applyReport(db, attempt.vmmId, vmmReport('starting', 2), { succeed: attempt });
  await applyReport(db, attempt.vmmId, vmmReport('running', 3));
  return { ...attempt, sledId };
}

/** Brings a running instance to where both sides of its migration are in progress. */
export async function migratingInstance(
  db: Database,
  source: Attempt,
  destinationSledId: string,
): Promise<SagaAttempt> {
  const attempt = newAttempt('migrate', source.instanceId);
  const id = attempt.migrationId;
  await claimedMigration(db, attempt, destinationSledId);
  await applyReport(db, attempt.vmmId, vmmReport('migrating', 2), { markCommanded: true });
  await applyReport(db, attempt.vmmId, vmmReport('migrating', 2), { succeed: attempt });
  await applyReport(db, source.vmmId, vmmReport('migrating', 4, { out: { id, state: 'in_progress', gen: 2 } }));
  await applyReport(db, attempt.vmmId, vmmReport('migrating', 2, { in: { id, state: 'in_progress', gen: 2 } }));
  return attempt;
}

/** The error body of an attempt that failed. */
export const unwindError = (message = 'it failed'): OperationError => ({
  status: 503,
  error_code: 'ServiceUnavailable',
  message,
});

/** Unwinds an attempt, unless it is spared. `confirmed`: its sled has answered. */
export async function unwoundAttempt(
  db: Database,
  attempt: Attempt,
  confirmed: boolean,
  spareRunning = false,
): Promise<Awaited<ReturnType<typeof beginUnwind>>> {
  const begun = await beginUnwind(db, { ...attempt, spareRunning, refused: true });
  if (begun.spared) return begun;
  await finishUnwind(db, { ...attempt, confirmed, neverCommanded: !begun.commanded, error: unwindError() });
  return begun;
}
