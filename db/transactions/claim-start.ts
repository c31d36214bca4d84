import { randomInt } from 'node:crypto';
import { type SQL, sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Attempt } from '../../model/attempt.ts';
import { autoRestartVerdict } from '../../model/auto-restart.ts';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState, type OperationKind, type StartReason } from '../../model/states.ts';
import { ADVISORY_LOCKS } from '../advisory-locks.ts';
import { auditStatement, automaticRecord } from '../audit-record.ts';
import type { Database, Queryable } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import { network } from '../network.ts';
import { autoRestartFacts } from '../queries/find-restart-candidates.ts';
import { explainNoSled, type PlacementRequest, pickSled } from '../queries/pick-sled.ts';
import { readDatabaseTime } from '../queries/read-database-time.ts';
import { readInstance } from '../queries/read-instance.ts';
import { readOperation } from '../queries/read-operation.ts';
import { AlreadyUnwound, recordRefusedOperation } from './refuse-operation.ts';
import { recordNothingToDo } from './succeed-operation.ts';

/** The ports that a VMM may get: below every usual ephemeral range, so that no client socket sits on one. */
export const VMM_PORTS = { first: 12_500, last: 32_500 } as const;
/** How often a claim that lost a race is tried again before it is refused because the sleds are busy. */
const MAX_ATTEMPTS = 12;
/** After so many lost races a claim queues up with the others that lost: one places at a time, so none loses for ever. */
const FREE_ATTEMPTS = 3;

export interface ClaimStartRequest extends Omit<Attempt, 'kind'> {
  readonly reason: StartReason;
  /** Sleds that gave this start no answer in its attempts before this one, whose VMMs are unwound: these are passed over. */
  readonly silentSledIds?: readonly string[];
}

/** A VMM that was claimed, as the saga's next steps need it. */
export interface ClaimedVmm {
  readonly vmmId: string;
  readonly sledId: string;
  readonly sledName: string;
  readonly sledAddress: string;
  /** The id that the sled's agent keeps with its data, where it is known. */
  readonly sledAgentId?: string | null;
  readonly vmmAddress: string;
  readonly instanceName: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  /** The CPU that its guest is to see; `null` or absent: the sled's choice. */
  readonly cpuModel?: string | null;
  /** What `register` carries: the row's generation plus one. */
  readonly registerGeneration: number;
}

/**
 * Claims all that a start needs in one statement: places the VMM, reserves, charges, makes its row and links it, over
 * NULL or a `saga_unwound` leftover (rule 1). It is guarded by the instance's generation; a lost guard reads again.
 * Returns `null` when the instance is already started. Throws a {@link Refusal}, having recorded nothing but that, when it
 * may not start, does not fit or has no quota left.
 *
 * The same claim may have been made before, or be on its way: one that was made is returned again, and of a claim and an
 * end of its operation (refused, or nothing to do) the row of the operation lets only one pass. Where the operation has
 * succeeded meanwhile it returns `null`.
 *
 * The claim of a later attempt (with `silentSledIds`) is refused without ending the operation, which has had a VMM: an unwind
 * does. It is refused too where the user has asked for stop meanwhile. Throws {@link AlreadyUnwound} where the operation is over.
 */
export async function claimStart(db: Database, request: ClaimStartRequest): Promise<ClaimedVmm | null> {
  const attempt: Attempt = { ...request, kind: 'start' };
  try {
    const claim = await tryClaim(db, request);
    if (claim !== null || (await recordNothingToDo(db, attempt))) return claim;
    throw alreadyUnwound('start');
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return request.silentSledIds === undefined ? refuseClaim(db, attempt, error) : refuseLaterClaim(db, attempt, error);
  }
}

/** As {@link refuseClaim}, of an attempt after the first: nothing is recorded. */
async function refuseLaterClaim(db: Database, { operationId }: Attempt, error: Refusal): Promise<null> {
  const operation = await readOperation(db, operationId);
  if (operation?.succeeded === true) return null;
  if (operation?.error != null) throw new AlreadyUnwound(operation.error);
  throw error;
}

/**
 * What a claim comes to that can't be made: throws the refusal, which is on record then, unless another attempt of it has
 * made the claim, which is returned, or the operation has succeeded (`null`). Throws {@link AlreadyUnwound} where it was claimed
 * and unwound.
 */
export async function refuseClaim(db: Database, attempt: Attempt, error: Refusal): Promise<ClaimedVmm | null> {
  const refused = await recordRefusedOperation(db, { ...attempt, error });
  if (refused.outcome === 'unwound') throw new AlreadyUnwound(refused.error);
  if (refused.outcome === 'succeeded') return null;
  const claim = refused.outcome === 'claimed' ? await readClaim(db, attempt) : null;
  if (claim === null) throw error;
  return claim === 'succeeded' ? null : claim;
}

/** The refusal of a claim whose attempt was ended before it arrived. */
export function alreadyUnwound(kind: OperationKind): Refusal {
  return Refusal.conflict(
    kind === 'start'
      ? 'this start was already unwound; start it again'
      : 'this migration was already unwound; migrate again',
  );
}

/** Constraints that let no claim of an attempt pass that was ended before it. */
export function isEndedAttempt(constraint: string | null): boolean {
  return constraint === 'vmm_pkey' || constraint === 'operation_is_over';
}

async function tryClaim(db: Database, request: ClaimStartRequest): Promise<ClaimedVmm | null> {
  for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
    try {
      const claim = await inPlacementQueue(db, attempt > FREE_ATTEMPTS, (queryable) => claimOnce(queryable, request));
      if (claim !== 'lost') return claim;
    } catch (error) {
      const constraint = violatedConstraint(error);
      if (isEndedAttempt(constraint)) throw alreadyUnwound('start');
      if (constraint === 'project_quota') throw await quotaRefusal(db, request.instanceId);
      if (!isLostPlacement(constraint)) throw error;
    }
  }
  throw Refusal.unavailable(
    `gave way ${MAX_ATTEMPTS} times to other requests for the same instance or sleds: start it again`,
  );
}

/** A place that was free when it was picked was taken meanwhile: by room, by policy, by a group's member or by address. */
export function isLostPlacement(constraint: string | null): boolean {
  return (
    constraint !== null &&
    ['sled_capacity', 'sled_in_service', 'affinity_group_forbids', 'vmm_address'].includes(constraint)
  );
}

/** Runs one attempt of a claim; where it has to `queue`, when those that queued before it are through. */
async function inPlacementQueue<T>(
  db: Database,
  queue: boolean,
  attempt: (queryable: Queryable) => Promise<T>,
): Promise<T> {
  if (!queue) return attempt(db);
  return db.transaction(async (transaction) => {
    await transaction.execute(sql`/* claim-start */ SELECT pg_advisory_xact_lock(${ADVISORY_LOCKS.placement})`);
    return attempt(transaction);
  });
}

/**
 * One attempt: read, pick, claim. `lost` when the instance changed meanwhile. The VMM waits for the operation's row, as in
 * the burning of an id, and the rest for the VMM, so that it is the one that a claim of an ended attempt fails by; the charge
 * waits for the reservation, so that the row of the sled is locked before the project's, as in an unwind and in an update.
 */
async function claimOnce(db: Queryable, request: ClaimStartRequest): Promise<ClaimedVmm | null | 'lost'> {
  const record = await readInstance(db, request.instanceId);
  if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', request.instanceId);
  const { instance, active, externalState } = record;

  if (instance.activeVmmId === request.vmmId && active !== null) {
    if (active.state === 'saga_unwound') throw alreadyUnwound('start');
    const claim = await readClaim(db, request);
    // It was unwound since it was read: the next round says so.
    if (claim === null) return 'lost';
    return claim === 'succeeded' ? null : claim;
  }
  const legal = verdict(externalState, 'start');
  if (legal === 'no-op') return null;
  if (legal !== 'act') throw Refusal.conflict(refusalMessage('start', instance.name, externalState));
  // Its first claim said that the user wants it to run; what has been asked for since counts for more.
  if (request.silentSledIds !== undefined && instance.intendedState !== 'running')
    throw Refusal.conflict('the user asked for stop meanwhile');
  if (request.reason === 'auto_restart') {
    const judged = autoRestartVerdict(autoRestartFacts(record), await readDatabaseTime(db));
    const why = judged.verdict === 'ineligible' ? judged.reason : 'its cooldown is not over';
    if (judged.verdict !== 'eligible')
      throw Refusal.conflict(`instance "${instance.name}" is not started again by itself: ${why}`);
  }
  // What shows Stopped or Failed holds no live VMM, whatever else changes in the model.
  if (active !== null && !isGoneVmmState(active.state))
    throw new Error(`VMM ${active.id} is alive under a ${externalState} instance`);

  const placement: PlacementRequest = {
    instanceId: instance.id,
    ncpus: instance.ncpus,
    memoryBytes: instance.memoryBytes,
    excludeSledIds: request.silentSledIds ?? [],
  };
  const sled = await pickSled(db, placement);
  if (sled === null) {
    throw Refusal.noCapacity(`instance "${instance.name}" can't be placed: ${await explainNoSled(db, placement)}`);
  }
  const ip = sled.address.slice(0, sled.address.lastIndexOf(':'));
  const port = randomInt(VMM_PORTS.first, VMM_PORTS.last);
  const recorded = request.reason === 'auto_restart' ? automaticStart(request) : sql``;
  const result = await db.execute(sql`/* claim-start */
    WITH claimed AS (
      UPDATE instance SET state = 'vmm', active_vmm_id = ${request.vmmId}, state_generation = state_generation + 1,
        intended_state = 'running', last_start_reason = ${request.reason}, time_state_updated = now(),
        time_last_auto_restarted = CASE WHEN ${request.reason} = 'auto_restart' THEN now() ELSE time_last_auto_restarted END,
        time_auto_restarted_before = CASE WHEN ${request.reason} = 'auto_restart' THEN time_last_auto_restarted
          ELSE time_auto_restarted_before END
      WHERE id = ${instance.id} AND state_generation = ${instance.stateGeneration} AND time_deleted IS NULL
        AND intended_state = ${instance.intendedState}
        AND ncpus = ${instance.ncpus} AND memory_bytes = ${instance.memoryBytes}
      RETURNING id, project_id, ncpus, memory_bytes
    ), begun AS (
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id)
      SELECT ${request.operationId}, 'start', id, ${request.vmmId}, ${request.workflowId} FROM claimed
      ON CONFLICT (id) DO UPDATE SET vmm_id = excluded.vmm_id
      RETURNING id
    ), made AS (
      INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, cpu_model)
      SELECT ${request.vmmId}, id, ${sled.id}, ${ip}, ${port}, 'creating', ${sled.cpuModel}::text FROM claimed WHERE EXISTS (SELECT 1 FROM begun)
      RETURNING id
    ), reserved AS (
      INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
      SELECT ${request.vmmId}, id, ${sled.id}, ncpus, memory_bytes, 'active' FROM claimed WHERE EXISTS (SELECT 1 FROM made)
      RETURNING vmm_id
    ), charged AS (
      INSERT INTO provisioning_charge (instance_id, project_id, cpus, memory_bytes)
      SELECT id, project_id, ncpus, memory_bytes FROM claimed WHERE EXISTS (SELECT 1 FROM reserved)
    ), networked AS (
      ${network.ensure(sql`
        SELECT id AS instance_id, ${sled.id}::uuid AS sled_id, ${request.vmmId}::uuid AS vmm_id, ${ip} AS ip, ${port}::int AS port
        FROM claimed`)}
    ), ${recorded}replaced AS (
      UPDATE vmm SET time_deleted = now()
      WHERE id = ${instance.activeVmmId} AND id IS DISTINCT FROM ${instance.targetVmmId}::uuid AND EXISTS (SELECT 1 FROM claimed)
        AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id)
    )
    SELECT id FROM claimed`);
  if (result.rows.length === 0) return 'lost';
  return {
    vmmId: request.vmmId,
    sledId: sled.id,
    sledName: sled.name,
    sledAddress: sled.address,
    sledAgentId: sled.keptAgentId,
    vmmAddress: `${ip}:${port}`,
    instanceName: instance.name,
    ncpus: instance.ncpus,
    memoryBytes: instance.memoryBytes,
    cpuModel: sled.cpuModel,
    registerGeneration: 2,
  };
}

/** The part of a claim that puts on the audit log what nobody asked for; its end is the operation's. */
function automaticStart(request: ClaimStartRequest): SQL {
  const record = automaticRecord(
    {
      operation: 'auto_restart',
      actorName: 'auto-restart',
      subjectKind: 'instance',
      subject: request.instanceId,
      sagaOperationId: request.operationId,
      runId: request.operationId,
      workflowId: request.workflowId,
    },
    null,
  );
  return sql`recorded AS (${auditStatement(record, { from: sql`claimed`, projectId: sql`claimed.project_id` })}), `;
}

async function quotaRefusal(db: Database, instanceId: string): Promise<Refusal> {
  const record = await readInstance(db, instanceId);
  if (record === null) return Refusal.notFound('instance', instanceId);
  const { name, ncpus, memoryBytes } = record.instance;
  return Refusal.noCapacity(
    `the quota of the project does not allow "${name}" (${ncpus} CPUs, ${memoryBytes} bytes): raise it, or stop other instances`,
  );
}

const claimRow = z.object({
  vmmId: z.string(),
  sledId: z.string(),
  sledName: z.string(),
  sledAddress: z.string(),
  sledAgentId: z.string().nullable(),
  vmmAddress: z.string(),
  instanceName: z.string(),
  ncpus: z.number(),
  memoryBytes: z.coerce.number(),
  cpuModel: z.string().nullable(),
  succeeded: z.boolean(),
});

/**
 * What an earlier attempt of a claim made, whatever has become of it since; `null` when it was unwound, or never made.
 * `succeeded`: its operation has, and there is nothing left to do: its sled is not asked again for a VMM that it may have ended.
 */
export async function readClaim(
  db: Queryable,
  { vmmId, operationId }: Pick<Attempt, 'vmmId' | 'operationId'>,
): Promise<ClaimedVmm | 'succeeded' | null> {
  const result = await db.execute(sql`/* claim-start */
    SELECT vmm.id AS "vmmId", sled.id AS "sledId", sled.name AS "sledName", sled.address AS "sledAddress", sled.kept_agent_id AS "sledAgentId",
      vmm.ip || ':' || vmm.port AS "vmmAddress", instance.name AS "instanceName",
      coalesce(held.threads, instance.ncpus) AS ncpus, coalesce(held.memory_bytes, instance.memory_bytes) AS "memoryBytes",
      vmm.cpu_model AS "cpuModel",
      EXISTS (SELECT 1 FROM operation WHERE operation.id = ${operationId} AND succeeded) AS succeeded
    FROM vmm JOIN sled ON sled.id = vmm.sled_id JOIN instance ON instance.id = vmm.instance_id
    LEFT JOIN sled_reservation held ON held.vmm_id = vmm.id WHERE vmm.id = ${vmmId} AND vmm.state <> 'saga_unwound'`);
  const row = result.rows[0];
  if (row === undefined) return null;
  const { succeeded, ...claim } = claimRow.parse(row);
  return succeeded ? 'succeeded' : { ...claim, registerGeneration: 2 };
}
