import type { CountedSled, SledRow } from '../../db/queries/read-sled.ts';
import { LATE_AFTER_LEASES } from '../../model/lease.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { RACK_ID } from './oxide-ids.ts';

/** A sled as the API answers it. */
export function viewSled({ sled: row, vmmCount, unheard }: CountedSled): SledView {
  const lease = viewLease(row);
  // As with Oxide's sleds: the policy is what the operator decided, the state is what has come of it.
  const expunged = row.policy === 'expunged' || row.expungingSince !== null;
  return {
    id: row.id,
    baseboard: { part: 'mooring', serial: row.name, revision: 0 },
    rack_id: RACK_ID,
    policy: expunged
      ? { kind: 'expunged' }
      : { kind: 'in_service', provision_policy: row.policy === 'in_service' ? 'provisionable' : 'non_provisionable' },
    state: row.policy === 'expunged' ? 'decommissioned' : 'active',
    usable_hardware_threads: row.threads,
    usable_physical_ram: row.memoryBytes,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
    name: row.name,
    address: row.address,
    threads: row.threads,
    memory: row.memoryBytes,
    threads_reserved: row.reservedThreads,
    memory_reserved: row.reservedMemoryBytes,
    vmm_count: vmmCount,
    provision_state: expunged ? 'expunged' : row.policy,
    lease,
    expunge_awaits:
      row.policy === 'expunged' || !expunged ? null : lease !== null ? 'lease' : unheard ? 'word' : 'sled',
    declared_dead:
      row.timeDeclaredDead === null || row.declaredDeadBy === null
        ? null
        : { time: row.timeDeclaredDead.toISOString(), by: row.declaredDeadBy },
    last_answered: latest(row.lastAnsweredAt, row.leaseRenewedAt)?.toISOString() ?? null,
    silent_since: silentSince(row, lease)?.toISOString() ?? null,
    agent:
      row.agentId === null && row.agentTrouble.length === 0
        ? null
        : { id: row.agentId, version: row.agentVersion, trouble: [...row.agentTrouble] },
    cpu_models: row.cpuModels,
  };
}

/** Since when a sled gives no answer to calls, or, with a lease that it does not renew, since it renewed that last. */
function silentSince(row: SledRow, lease: SledView['lease']): Date | null {
  if (row.policy === 'expunged') return null;
  if (row.silentSince !== null) return row.silentSince;
  return lease === null || lease.standing === 'held' ? null : row.leaseRenewedAt;
}

function latest(some: Date | null, other: Date | null): Date | null {
  if (some === null || other === null) return some ?? other;
  return some > other ? some : other;
}

/** By this process's clock: for people. Verdicts are the database's. */
function viewLease(row: SledRow): SledView['lease'] {
  const { leaseMs, leaseRenewedAt, leaseConfirmedAt, fencingSince } = row;
  if (leaseMs === null || leaseRenewedAt === null || fencingSince === null) return null;
  const age = Date.now() - (leaseConfirmedAt?.getTime() ?? 0);
  return {
    seconds: leaseMs / 1000,
    standing: age < leaseMs * LATE_AFTER_LEASES ? 'held' : age < leaseMs ? 'late' : 'lapsed',
    time_renewed: leaseRenewedAt.toISOString(),
    time_expires: new Date(leaseRenewedAt.getTime() + leaseMs).toISOString(),
    fencing_since: fencingSince.toISOString(),
  };
}
