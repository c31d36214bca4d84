import { randomInt } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState, type StartReason } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import { readInstance } from '../queries/read-instance.ts';
import { burnVmmId, recordRefusedOperation } from './unwind-vmm.ts';

/** The ports that a VMM may get: below every usual ephemeral range, so that no client socket sits on one. */
export const VMM_PORTS = { first: 12_500, last: 32_500 } as const;
/** How often a claim that lost a race is tried again before it says that the sleds are full or busy. */
const MAX_ATTEMPTS = 12;

export interface ClaimStartRequest {
  readonly instanceId: string;
  readonly vmmId: string;
  readonly operationId: string;
  readonly workflowId: string;
  readonly reason: StartReason;
  /** An earlier attempt of the same claim may still be on its way: a refusal must then close the door on it. */
  readonly isRetry: boolean;
}

/** A VMM that was claimed, as the saga's next steps need it. */
export interface ClaimedVmm {
  readonly vmmId: string;
  readonly sledId: string;
  readonly sledName: string;
  readonly sledAddress: string;
  readonly vmmAddress: string;
  readonly instanceName: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  /** What `register` carries: the row's generation plus one. */
  readonly registerGeneration: number;
}

const placementRow = z.object({ id: z.string(), name: z.string(), address: z.string() });

/**
 * Claims all that a start needs in one statement: places the VMM, reserves, charges, makes its row and links it, over
 * NULL or a `saga_unwound` leftover (rule 1). It is guarded by the instance's generation; a lost guard reads again.
 * Returns `null` when the instance is already started. Throws a {@link Refusal}, having written nothing, when it may not
 * start, does not fit or has no quota left.
 */
export async function claimStart(db: Database, request: ClaimStartRequest): Promise<ClaimedVmm | null> {
  try {
    return await tryClaim(db, request);
  } catch (error) {
    if (error instanceof Refusal) {
      if (request.isRetry) await burnVmmId(db, request);
      await recordRefusedOperation(db, { ...request, kind: 'start', error });
    }
    throw error;
  }
}

async function tryClaim(db: Database, request: ClaimStartRequest): Promise<ClaimedVmm | null> {
  let lost = '';
  for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
    const record = await readInstance(db, request.instanceId);
    if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', request.instanceId);
    const { instance, active, shown } = record;

    if (instance.activeVmmId === request.vmmId && active !== null) {
      if (active.state === 'saga_unwound') throw Refusal.conflict('this start was already unwound; start it again');
      const claim = await readClaim(db, request.vmmId);
      if (claim !== null) return claim;
      // It was unwound since it was read: the next round says so.
      continue;
    }
    const legal = verdict(shown, 'start');
    if (legal === 'no-op') return null;
    if (legal !== 'act') throw Refusal.conflict(refusalMessage('start', instance.name, shown));
    if (request.reason === 'auto_restart' && instance.intendedState !== 'running') {
      throw Refusal.conflict(`instance "${instance.name}" is not meant to run: it is not restarted`);
    }
    // What shows Stopped or Failed holds no live VMM, whatever else changes in the model.
    if (active !== null && !isGoneVmmState(active.state))
      throw new Error(`VMM ${active.id} is alive under a ${shown} instance`);

    const sled = await pickSled(db, instance.ncpus, instance.memoryBytes);
    if (sled === null) {
      throw Refusal.noCapacity(
        `no sled has room for "${instance.name}" (${instance.ncpus} CPUs, ${instance.memoryBytes} bytes): add a sled, or stop or move other instances`,
      );
    }
    const ip = sled.address.slice(0, sled.address.lastIndexOf(':'));
    const port = randomInt(VMM_PORTS.first, VMM_PORTS.last);
    try {
      const result = await db.execute(sql`/* claim-start */
        WITH claimed AS (
          UPDATE instance SET state = 'vmm', active_vmm_id = ${request.vmmId}, state_generation = state_generation + 1,
            intended_state = 'running', last_start_reason = ${request.reason}, time_state_updated = now(),
            time_last_auto_restarted = CASE WHEN ${request.reason} = 'auto_restart' THEN now() ELSE time_last_auto_restarted END
          WHERE id = ${instance.id} AND state_generation = ${instance.stateGeneration} AND time_deleted IS NULL
            AND intended_state = ${instance.intendedState}
            AND ncpus = ${instance.ncpus} AND memory_bytes = ${instance.memoryBytes}
          RETURNING id, project_id, ncpus, memory_bytes
        ), made AS (
          INSERT INTO vmm (id, instance_id, sled_id, ip, port, state)
          SELECT ${request.vmmId}, id, ${sled.id}, ${ip}, ${port}, 'creating' FROM claimed
        ), charged AS (
          INSERT INTO provisioning_charge (instance_id, project_id, cpus, memory_bytes)
          SELECT id, project_id, ncpus, memory_bytes FROM claimed
        ), reserved AS (
          INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
          SELECT ${request.vmmId}, id, ${sled.id}, ncpus, memory_bytes, 'active' FROM claimed
        ), begun AS (
          INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id)
          SELECT ${request.operationId}, 'start', id, ${request.vmmId}, ${request.workflowId} FROM claimed
          ON CONFLICT (id) DO UPDATE SET vmm_id = excluded.vmm_id
        ), replaced AS (
          UPDATE vmm SET time_deleted = now()
          WHERE id = ${instance.activeVmmId} AND EXISTS (SELECT 1 FROM claimed)
            AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id)
        )
        SELECT id FROM claimed`);
      if (result.rows.length > 0) {
        return {
          vmmId: request.vmmId,
          sledId: sled.id,
          sledName: sled.name,
          sledAddress: sled.address,
          vmmAddress: `${ip}:${port}`,
          instanceName: instance.name,
          ncpus: instance.ncpus,
          memoryBytes: instance.memoryBytes,
          registerGeneration: 2,
        };
      }
      lost = 'other requests for the same instance';
    } catch (error) {
      const constraint = violatedConstraint(error);
      if (constraint === 'project_quota') {
        throw Refusal.noCapacity(
          `the quota of the project does not allow "${instance.name}" (${instance.ncpus} CPUs, ${instance.memoryBytes} bytes): raise it, or stop other instances`,
        );
      }
      // The id was burnt: this attempt comes after its saga has unwound.
      if (constraint === 'vmm_pkey') throw Refusal.conflict('this start was already unwound; start it again');
      if (constraint !== 'sled_capacity' && constraint !== 'sled_in_service' && constraint !== 'vmm_address')
        throw error;
      lost = 'other starts on the same sled';
    }
  }
  throw Refusal.unavailable(`gave way ${MAX_ATTEMPTS} times to ${lost}: start it again`);
}

/**
 * The sled with the smallest share in use after the placement, among those in service that fit. Sleds within a tenth
 * of each other count as equal and one is drawn, so that starts at the same time don't all queue for one row.
 */
async function pickSled(db: Database, ncpus: number, memoryBytes: number) {
  const result = await db.execute(sql`/* claim-start */
    SELECT id, name, address FROM sled
    WHERE policy = 'in_service' AND reserved_threads + ${ncpus} <= threads
      AND reserved_memory_bytes + ${memoryBytes}::bigint <= memory_bytes
    ORDER BY floor(10 * greatest((reserved_threads + ${ncpus})::float8 / threads,
      (reserved_memory_bytes + ${memoryBytes}::bigint)::float8 / memory_bytes)), random()
    LIMIT 1`);
  const row = result.rows[0];
  return row === undefined ? null : placementRow.parse(row);
}

const claimRow = z.object({
  vmmId: z.string(),
  sledId: z.string(),
  sledName: z.string(),
  sledAddress: z.string(),
  vmmAddress: z.string(),
  instanceName: z.string(),
  ncpus: z.number(),
  memoryBytes: z.coerce.number(),
});

/** What an earlier attempt of a claim made; `null` when it holds nothing (any more). */
export async function readClaim(db: Database, vmmId: string): Promise<ClaimedVmm | null> {
  const result = await db.execute(sql`/* claim-start */
    SELECT vmm.id AS "vmmId", sled.id AS "sledId", sled.name AS "sledName", sled.address AS "sledAddress",
      vmm.ip || ':' || vmm.port AS "vmmAddress", instance.name AS "instanceName",
      reservation.threads AS ncpus, reservation.memory_bytes AS "memoryBytes"
    FROM vmm JOIN sled ON sled.id = vmm.sled_id JOIN instance ON instance.id = vmm.instance_id
    JOIN sled_reservation reservation ON reservation.vmm_id = vmm.id WHERE vmm.id = ${vmmId}`);
  const row = result.rows[0];
  return row === undefined ? null : { ...claimRow.parse(row), registerGeneration: 2 };
}
