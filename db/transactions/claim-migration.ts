import { randomInt } from 'node:crypto';
import { type SQL, sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import { migrateVerdict, refusalMessage } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { auditStatement, automaticRecord } from '../audit-record.ts';
import type { Database, Queryable } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import { type Destination, readDestination } from '../queries/pick-sled.ts';
import { type InstanceRecord, readInstance } from '../queries/read-instance.ts';
import {
  alreadyUnwound,
  type ClaimedVmm,
  isEndedAttempt,
  isLostPlacement,
  readClaim,
  refuseClaim,
  VMM_PORTS,
} from './claim-start.ts';
import { recordNothingToDo } from './succeed-operation.ts';

const MAX_ATTEMPTS = 12;

export interface ClaimMigrationRequest extends Omit<Attempt, 'kind'> {
  readonly destinationSledId: string;
  readonly migrationId: string;
  /** The sled that is being drained, where that is why: nobody asked for this very migration. */
  readonly drainedSledId?: string | undefined;
}

export interface ClaimedMigration extends ClaimedVmm {
  readonly migrationId: string;
  /** `ip:port` of the source VMM. */
  readonly sourceAddress: string;
}

/** What a claim comes to: made; nothing to do, since it is on its way there already; or in the way of an update. */
export type MigrationClaim =
  | { readonly outcome: 'claimed'; readonly claim: ClaimedMigration }
  | { readonly outcome: 'already' }
  /** A leftover that only the update saga may clear stands in the way: signal it, wait, try again. */
  | { readonly outcome: 'awaits-update' };

/**
 * Checks a migration without writing: first the shown state, then the destination, which it returns. Throws a
 * {@link Refusal}; returns `already` where the instance is on its way to this sled.
 */
export async function checkMigration(
  db: Queryable,
  record: InstanceRecord,
  destinationSledId: string,
): Promise<'already' | Destination> {
  const { instance, active, target, externalState } = record;
  const verdict = migrateVerdict(externalState, destinationSledId, target?.sledId ?? null);
  if (verdict === 'no-op') return 'already';
  if (verdict === 'conflict') throw Refusal.conflict(refusalMessage('migrate', instance.name, externalState));
  if (verdict === 'invalid') throw Refusal.invalid(refusalMessage('migrate', instance.name, externalState));

  const { name, ncpus, memoryBytes } = instance;
  const cpuModel = active?.cpuModel ?? null;
  const placement = { instanceId: instance.id, ncpus, memoryBytes, cpuModel };
  const destination = await readDestination(db, destinationSledId, placement);
  if (destination === null) throw Refusal.notFound('sled', destinationSledId);
  if (active?.sledId === destinationSledId) {
    throw Refusal.invalid(
      `dst_sled_id: instance "${name}" is on sled "${destination.name}" already; name another sled`,
    );
  }
  if (destination.policy !== 'in_service') {
    throw Refusal.conflict(
      `dst_sled_id: sled "${destination.name}" takes no instances (${destination.policy}); name one that is in service`,
    );
  }
  if (!destination.takesVmms) {
    throw Refusal.conflict(
      `dst_sled_id: sled "${destination.name}" takes no instances: it was declared dead, is late with the renewal of its lease, or another agent than its own answers at its address (see "mooring sled list"); name another sled`,
    );
  }
  if (!destination.offersCpu) {
    throw Refusal.conflict(
      `dst_sled_id: sled "${destination.name}" does not offer the CPU model ${cpuModel}, which the guest of "${name}" runs with (it offers ${describeModels(destination.cpuModels)}); name another sled, or stop the instance and start it again`,
    );
  }
  if (!destination.room) {
    throw Refusal.noCapacity(
      `dst_sled_id: sled "${destination.name}" has no room for "${name}" (${ncpus} CPUs, ${memoryBytes} bytes); name another sled, or make room`,
    );
  }
  // As a lack of capacity, like Omicron: its placement finds no target where a group's policy bans the only candidate.
  if (destination.forbiddenBy !== null) {
    throw Refusal.noCapacity(
      `dst_sled_id: ${destination.forbiddenBy} sled "${destination.name}" for "${name}"; name another sled, or change the group`,
    );
  }
  return destination;
}

/** A sled offers dozens: the first ones tell what kind of machine it is. */
function describeModels(models: readonly string[] | null): string {
  if (models === null || models.length === 0) return 'none';
  return models.length <= 5 ? models.join(', ') : `${models.slice(0, 5).join(', ')} and ${models.length - 5} more`;
}

/**
 * Claims all that a migration needs in one statement: the migration's row, the target VMM with its reservation, and both
 * ids, over NULL or a `saga_unwound` target (rule 1). Guarded by the instance's generation. Throws a {@link Refusal}
 * having recorded nothing but that. What it comes to where the same claim was made before is that of `claimStart`.
 */
export async function claimMigration(db: Database, request: ClaimMigrationRequest): Promise<MigrationClaim> {
  const attempt: Attempt = { ...request, kind: 'migrate' };
  try {
    const made = await tryClaim(db, request);
    if (made.outcome !== 'already' || (await recordNothingToDo(db, attempt))) return made;
    throw alreadyUnwound('migrate');
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const claim = await refuseClaim(db, attempt, error);
    return claim === null ? { outcome: 'already' } : claimedMigration(db, claim, request);
  }
}

/** An earlier attempt's claim, with what it was to migrate from. */
async function claimedMigration(
  db: Queryable,
  claim: ClaimedVmm,
  { migrationId }: Pick<ClaimMigrationRequest, 'migrationId'>,
): Promise<MigrationClaim> {
  const result = await db.execute(sql`/* claim-migration */
    SELECT source.ip || ':' || source.port AS address FROM migration JOIN vmm source ON source.id = source_vmm_id
    WHERE migration.id = ${migrationId}`);
  return { outcome: 'claimed', claim: { ...claim, migrationId, sourceAddress: String(result.rows[0]?.address) } };
}

async function tryClaim(db: Database, request: ClaimMigrationRequest): Promise<MigrationClaim> {
  for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
    try {
      const claim = await claimOnce(db, request);
      if (claim !== 'lost') return claim;
    } catch (error) {
      const constraint = violatedConstraint(error);
      if (isEndedAttempt(constraint)) throw alreadyUnwound('migrate');
      // The destination was taken or left service since it was read: the next round says which.
      if (!isLostPlacement(constraint)) throw error;
    }
  }
  throw Refusal.unavailable(
    `gave way ${MAX_ATTEMPTS} times to other requests for the same instance or sled: migrate again`,
  );
}

/** One attempt: read, check, claim, in the order of a start's. `lost` when the instance changed meanwhile. */
async function claimOnce(db: Queryable, request: ClaimMigrationRequest): Promise<MigrationClaim | 'lost'> {
  const record = await readInstance(db, request.instanceId);
  if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', request.instanceId);
  const { instance, active, target } = record;
  if (instance.targetVmmId === request.vmmId && target !== null) {
    if (target.state === 'saga_unwound') throw alreadyUnwound('migrate');
    const claim = await readClaim(db, request);
    // It was unwound since it was read: the next round says so.
    if (claim === null) return 'lost';
    return claim === 'succeeded' ? { outcome: 'already' } : claimedMigration(db, claim, request);
  }
  const destination = await checkMigration(db, record, request.destinationSledId);
  if (destination === 'already') return { outcome: 'already' };
  if (target !== null && target.state !== 'saga_unwound') {
    if (target.unwindingSince !== null && !isGoneVmmState(target.state)) {
      throw Refusal.conflict(
        `an earlier migration of "${instance.name}" is still being unwound, since its sled has not answered: try again when that is over, or expunge the sled`,
      );
    }
    return { outcome: 'awaits-update' };
  }
  if (active === null) return 'lost';
  const ip = destination.address.slice(0, destination.address.lastIndexOf(':'));
  const port = randomInt(VMM_PORTS.first, VMM_PORTS.last);
  const { drainedSledId } = request;
  const recorded = drainedSledId === undefined ? sql`` : drainsMigration(request, drainedSledId, instance.projectId);
  const result = await db.execute(sql`/* claim-migration */
    WITH claimed AS (
      UPDATE instance SET target_vmm_id = ${request.vmmId}, migration_id = ${request.migrationId},
        state_generation = state_generation + 1, time_state_updated = now()
      WHERE id = ${instance.id} AND state_generation = ${instance.stateGeneration} AND time_deleted IS NULL
        AND EXISTS (SELECT 1 FROM vmm source WHERE source.id = ${active.id} AND source.state = 'running')
      RETURNING id, ncpus, memory_bytes
    ), begun AS (
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id)
      SELECT ${request.operationId}, 'migrate', id, ${request.vmmId}, ${request.workflowId} FROM claimed
      ON CONFLICT (id) DO UPDATE SET vmm_id = excluded.vmm_id
      RETURNING id
    ), made AS (
      INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, cpu_model)
      SELECT ${request.vmmId}, id, ${destination.id}, ${ip}, ${port}, 'creating', ${active.cpuModel}::text FROM claimed WHERE EXISTS (SELECT 1 FROM begun)
      RETURNING id
    ), migrating AS (
      INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id)
      SELECT ${request.migrationId}, id, ${active.id}, ${request.vmmId} FROM claimed WHERE EXISTS (SELECT 1 FROM made)
    ), replaced AS (
      UPDATE vmm SET time_deleted = now()
      WHERE id = ${target?.id ?? null} AND EXISTS (SELECT 1 FROM claimed)
        AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id)
    ), reserved AS (
      INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
      SELECT ${request.vmmId}, id, ${destination.id}, ncpus, memory_bytes, 'target' FROM claimed WHERE EXISTS (SELECT 1 FROM made)
    )${recorded}
    SELECT id FROM claimed`);
  if (result.rows.length === 0) return 'lost';
  return {
    outcome: 'claimed',
    claim: {
      vmmId: request.vmmId,
      sledId: destination.id,
      sledName: destination.name,
      sledAddress: destination.address,
      sledAgentId: destination.keptAgentId,
      vmmAddress: `${ip}:${port}`,
      instanceName: instance.name,
      ncpus: instance.ncpus,
      memoryBytes: instance.memoryBytes,
      cpuModel: active.cpuModel,
      registerGeneration: 2,
      migrationId: request.migrationId,
      sourceAddress: `${active.ip}:${active.port}`,
    },
  };
}

/** The part of a claim that puts a drain's migration on the audit log; its end is the operation's. */
function drainsMigration(request: ClaimMigrationRequest, sledId: string, projectId: string): SQL {
  const record = automaticRecord(
    {
      operation: 'drain_migrate',
      actorName: `drain of sled ${sledId}`,
      subjectKind: 'instance',
      subject: request.instanceId,
      projectId,
      sagaOperationId: request.operationId,
      runId: request.operationId,
      workflowId: request.workflowId,
    },
    null,
  );
  return sql`, recorded AS (${auditStatement(record, { from: sql`claimed` })})`;
}
