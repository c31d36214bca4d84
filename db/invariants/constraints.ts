/**
 * Invariant 1: the constraints of section 2 of docs/design.md, checked anew from the data, and that no instance names what
 * is not its own.
 */
import { GONE } from '../gone-states.ts';
import type { DatabaseRule } from './rule.ts';

export const CONSTRAINT_RULES: readonly DatabaseRule[] = [
  {
    name: 'incarnated iff active VMM',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT id AS instance_id, NULL::uuid AS sled_id,
        format('instance %s is in state %s with active VMM %s', name, state, coalesce(active_vmm_id::text, 'none')) AS message
      FROM instance WHERE (state = 'vmm') <> (active_vmm_id IS NOT NULL)`,
  },
  {
    name: 'target iff migration',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT id, NULL::uuid, format('instance %s has target VMM %s and migration %s', name,
        coalesce(target_vmm_id::text, 'none'), coalesce(migration_id::text, 'none'))
      FROM instance WHERE (target_vmm_id IS NOT NULL) <> (migration_id IS NOT NULL)`,
  },
  {
    name: 'target only while incarnated',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT id, NULL::uuid, format('instance %s has a target VMM or a migration in state %s', name, state)
      FROM instance WHERE (target_vmm_id IS NOT NULL OR migration_id IS NOT NULL) AND state <> 'vmm'`,
  },
  {
    name: 'destroyed only when deleted',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT id, NULL::uuid, format('instance %s is destroyed but not deleted', name)
      FROM instance WHERE state = 'destroyed' AND time_deleted IS NULL`,
  },
  {
    name: 'links own',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance.id, vmm.sled_id, format('instance %s names as its %s VMM %s, which %s', instance.name, link.side, link.vmm_id,
        CASE WHEN vmm.id IS NULL THEN 'does not exist' WHEN vmm.instance_id <> instance.id THEN 'belongs to instance ' || vmm.instance_id ELSE 'is deleted' END)
      FROM instance CROSS JOIN LATERAL (VALUES ('active', instance.active_vmm_id), ('target', instance.target_vmm_id)) AS link (side, vmm_id)
      LEFT JOIN vmm ON vmm.id = link.vmm_id
      WHERE link.vmm_id IS NOT NULL AND (vmm.id IS NULL OR vmm.instance_id <> instance.id OR vmm.time_deleted IS NOT NULL)`,
  },
  {
    name: 'migration own',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance.id, NULL::uuid, format('instance %s names migration %s, which %s', instance.name, instance.migration_id,
        CASE WHEN migration.id IS NULL THEN 'does not exist'
          WHEN migration.instance_id <> instance.id THEN 'belongs to instance ' || migration.instance_id
          ELSE 'is from VMM ' || migration.source_vmm_id || ' to ' || migration.target_vmm_id || ', not from ' || coalesce(active_vmm_id::text, 'none') || ' to ' || coalesce(instance.target_vmm_id::text, 'none') END)
      FROM instance LEFT JOIN migration ON migration.id = instance.migration_id
      WHERE instance.migration_id IS NOT NULL AND (migration.id IS NULL OR migration.instance_id <> instance.id
        -- While it is linked, the active VMM is its source, or its target once the guest has left the source (case 2).
        OR migration.target_vmm_id IS DISTINCT FROM instance.target_vmm_id
        OR NOT coalesce(instance.active_vmm_id IN (migration.source_vmm_id, migration.target_vmm_id), false))`,
  },
  {
    name: 'migration within one instance',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT migration.instance_id, NULL::uuid, format('migration %s: its %s VMM %s %s', migration.id, link.side, link.vmm_id,
        CASE WHEN vmm.id IS NULL THEN 'does not exist' ELSE 'belongs to instance ' || vmm.instance_id END)
      FROM migration CROSS JOIN LATERAL (VALUES ('source', migration.source_vmm_id), ('target', migration.target_vmm_id)) AS link (side, vmm_id)
      LEFT JOIN vmm ON vmm.id = link.vmm_id
      WHERE vmm.id IS NULL OR vmm.instance_id <> migration.instance_id`,
  },
  {
    name: 'one link per VMM',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, NULL::uuid, format('VMM %s is the %s VMM of %s instances', link.vmm_id, link.side, count(*))
      FROM instance CROSS JOIN LATERAL (VALUES ('active', instance.active_vmm_id), ('target', instance.target_vmm_id)) AS link (side, vmm_id)
      WHERE link.vmm_id IS NOT NULL GROUP BY link.vmm_id, link.side HAVING count(*) > 1`,
  },
  {
    name: 'failed iff reason',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance_id, sled_id, format('VMM %s is %s with failure reason %s', id, state, coalesce(quote_literal(failure_reason), 'none'))
      FROM vmm WHERE (state = 'failed') <> (failure_reason IS NOT NULL)`,
  },
  {
    name: 'VMM placed',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance_id, sled_id, format('VMM %s is %s without a sled or an address', id, state)
      FROM vmm WHERE state <> 'saga_unwound' AND (sled_id IS NULL OR ip IS NULL OR port IS NULL)`,
  },
  {
    name: 'VMM owned',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s names %s that does not exist', vmm.id,
        CASE WHEN instance.id IS NULL THEN 'instance ' || vmm.instance_id ELSE 'sled ' || vmm.sled_id END)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id LEFT JOIN sled ON sled.id = vmm.sled_id
      WHERE instance.id IS NULL OR (vmm.sled_id IS NOT NULL AND sled.id IS NULL)`,
  },
  {
    name: 'unwound by a saga',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance_id, sled_id, format('VMM %s is saga_unwound but nobody began to unwind it', id)
      FROM vmm WHERE state = 'saga_unwound' AND unwinding_since IS NULL`,
  },
  {
    name: 'address of one VMM',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, NULL::uuid, format('address %s:%s belongs to %s living VMMs: %s', ip, port, count(*), string_agg(id::text, ', '))
      FROM vmm WHERE time_deleted IS NULL AND state NOT IN ${GONE} AND ip IS NOT NULL GROUP BY ip, port HAVING count(*) > 1`,
  },
  {
    name: 'one reservation of a kind',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT instance_id, NULL::uuid, format('instance %s has %s %s reservations', instance_id, count(*), kind)
      FROM sled_reservation WHERE kind <> 'tombstoned' GROUP BY instance_id, kind HAVING count(*) > 1`,
  },
  {
    name: 'reservation of its VMM',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT held.instance_id, held.sled_id, format('the reservation of VMM %s on sled %s %s', held.vmm_id, held.sled_id,
        CASE WHEN vmm.id IS NULL THEN 'is for a VMM that does not exist'
          WHEN vmm.instance_id <> held.instance_id THEN 'names instance ' || held.instance_id || ', but the VMM belongs to ' || vmm.instance_id
          ELSE 'is not where the VMM is: sled ' || coalesce(vmm.sled_id::text, 'none') END)
      FROM sled_reservation held LEFT JOIN vmm ON vmm.id = held.vmm_id
      WHERE vmm.id IS NULL OR vmm.instance_id <> held.instance_id OR vmm.sled_id IS DISTINCT FROM held.sled_id`,
  },
  {
    name: 'reservation kind as linked',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT held.instance_id, held.sled_id, format('the reservation of VMM %s is %s, but instance %s does not name it as %s', held.vmm_id,
        held.kind, coalesce(instance.name, held.instance_id::text), CASE held.kind WHEN 'active' THEN 'its active VMM' ELSE 'its target VMM' END)
      FROM sled_reservation held LEFT JOIN instance ON instance.id = held.instance_id
      WHERE (held.kind = 'active' AND instance.active_vmm_id IS DISTINCT FROM held.vmm_id)
        OR (held.kind = 'target' AND (instance.target_vmm_id IS DISTINCT FROM held.vmm_id OR instance.active_vmm_id = held.vmm_id))`,
  },
  {
    name: 'lease whole',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, id, format('sled %s has a lease of %s ms, renewed %s, and fencing since %s: all or none', name,
        coalesce(lease_ms::text, 'no'), coalesce(lease_renewed_at::text, 'never'), coalesce(fencing_since::text, 'never'))
      FROM sled WHERE num_nulls(lease_ms, lease_renewed_at, fencing_since) NOT IN (0, 3) OR lease_ms < 1`,
  },
  {
    name: 'death whole',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, id, format('sled %s was declared dead at %s by %s', name, coalesce(time_declared_dead::text, 'no time'), coalesce(declared_dead_by::text, 'nobody'))
      FROM sled WHERE (time_declared_dead IS NULL) <> (declared_dead_by IS NULL)`,
  },
  {
    name: 'sled sums',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, sled.id, format('sled %s says that %s threads and %s bytes are reserved; its reservations add up to %s and %s',
        sled.name, reserved_threads, reserved_memory_bytes, coalesce(held.threads, 0), coalesce(held.memory_bytes, 0))
      FROM sled LEFT JOIN (SELECT sled_id, sum(threads) AS threads, sum(memory_bytes) AS memory_bytes FROM sled_reservation GROUP BY sled_id) held
        ON held.sled_id = sled.id
      WHERE reserved_threads <> coalesce(held.threads, 0) OR reserved_memory_bytes <> coalesce(held.memory_bytes, 0)`,
  },
  {
    name: 'sled not exceeded',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, sled.id, format('sled %s has %s threads and %s bytes; %s and %s are reserved on it',
        sled.name, sled.threads, sled.memory_bytes, held.threads, held.memory_bytes)
      FROM sled JOIN (SELECT sled_id, sum(threads) AS threads, sum(memory_bytes) AS memory_bytes FROM sled_reservation GROUP BY sled_id) held
        ON held.sled_id = sled.id
      WHERE held.threads > sled.threads OR held.memory_bytes > sled.memory_bytes`,
  },
  {
    name: 'project sums',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, NULL::uuid, format('project %s says that %s CPUs and %s bytes are charged; its charges add up to %s and %s',
        project.name, charged_cpus, charged_memory_bytes, coalesce(taken.cpus, 0), coalesce(taken.memory_bytes, 0))
      FROM project LEFT JOIN (SELECT project_id, sum(cpus) AS cpus, sum(memory_bytes) AS memory_bytes FROM provisioning_charge GROUP BY project_id) taken
        ON taken.project_id = project.id
      WHERE charged_cpus <> coalesce(taken.cpus, 0) OR charged_memory_bytes <> coalesce(taken.memory_bytes, 0)`,
  },
  {
    name: 'charge of its project',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT charge.instance_id, NULL::uuid, format('the charge of instance %s is to project %s, which is not its own', coalesce(instance.name, charge.instance_id::text), charge.project_id)
      FROM provisioning_charge charge LEFT JOIN instance ON instance.id = charge.instance_id
      WHERE instance.id IS NULL OR instance.project_id <> charge.project_id`,
  },
  {
    name: 'name free',
    invariant: 1,
    holds: 'always',
    query: `
      SELECT NULL::uuid, NULL::uuid, format('%s instances of project %s are named %s', count(*), project_id, name)
      FROM instance WHERE time_deleted IS NULL GROUP BY project_id, name HAVING count(*) > 1`,
  },
  {
    name: 'generation positive',
    invariant: 2,
    holds: 'always',
    query: `
      SELECT id, NULL::uuid, format('instance %s has generation %s', name, state_generation) FROM instance WHERE state_generation < 1
      UNION ALL SELECT instance_id, sled_id, format('VMM %s has generation %s', id, state_generation) FROM vmm WHERE state_generation < 1
      UNION ALL SELECT instance_id, NULL::uuid, format('migration %s has generations %s and %s', id, source_generation, target_generation)
        FROM migration WHERE source_generation < 1 OR target_generation < 1`,
  },
];
