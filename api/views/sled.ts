import type { CountedSled, SledRow } from '../../db/queries/read-sled.ts';
import { LATE_AFTER_LEASES } from '../../model/lease.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { RACK_ID } from './oxide-ids.ts';

/** A sled as the API answers it. */
export function viewSled({ sled: row, vmmCount }: CountedSled): SledView {
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
    lease: viewLease(row),
    declared_dead:
      row.timeDeclaredDead === null || row.declaredDeadBy === null
        ? null
        : { time: row.timeDeclaredDead.toISOString(), by: row.declaredDeadBy },
  };
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
