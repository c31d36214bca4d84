/** What must hold of the stored state: invariants 4, 6, 7, 8, 9 and 10, in every committed state or at rest. */
import { GONE } from '../gone-states.ts';
import type { DatabaseRule } from './rule.ts';

/** The instance's name, or its id where there is no such instance. */
const NAME = 'coalesce(instance.name, vmm.instance_id::text)';
const LINKED = 'coalesce(vmm.id IN (instance.active_vmm_id, instance.target_vmm_id), false)';
/**
 * The VMM was unwound while its sled was silent, and its sled is silent still: only its answer releases what is held.
 * `silent_sled` holds the sleds that did not answer the doctor.
 */
const AWAITS_SLED = `(vmm.state = 'saga_unwound' AND EXISTS (SELECT 1 FROM silent_sled WHERE silent_sled.id = vmm.sled_id)
  AND EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id))`;

export const STATE_RULES: readonly DatabaseRule[] = [
  {
    name: 'unwound target never had the guest',
    invariant: 7,
    holds: 'always',
    query: `
      SELECT migration.instance_id, vmm.sled_id, format('migration %s completed, but its saga unwound target VMM %s', migration.id, vmm.id)
      FROM migration JOIN vmm ON vmm.id = migration.target_vmm_id
      WHERE migration.target_state = 'completed' AND vmm.state = 'saga_unwound'`,
  },
  {
    name: 'living VMM reserved',
    invariant: 8,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is %s without a reservation', vmm.id, ${NAME}, vmm.state)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE}
        AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id)`,
  },
  {
    name: 'living VMM not deleted',
    invariant: 8,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is deleted but %s', vmm.id, ${NAME}, vmm.state)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NOT NULL AND vmm.state NOT IN ${GONE}`,
  },
  {
    name: 'deleted VMM holds nothing',
    invariant: 8,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, held.sled_id, format('VMM %s of instance %s is deleted but holds a %s reservation', vmm.id, ${NAME}, held.kind)
      FROM sled_reservation held JOIN vmm ON vmm.id = held.vmm_id LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NOT NULL`,
  },
  {
    name: 'charge iff incarnated',
    invariant: 8,
    holds: 'always',
    query: `
      SELECT instance.id, NULL::uuid, format('instance %s (%s, active VMM %s) %s', instance.name, instance.state, coalesce(vmm.state::text, 'none'),
        CASE WHEN charge.instance_id IS NULL THEN 'is not charged' ELSE 'is charged' END)
      FROM instance LEFT JOIN vmm ON vmm.id = instance.active_vmm_id LEFT JOIN provisioning_charge charge ON charge.instance_id = instance.id
      -- A charge over a saga_unwound VMM is the next rule's.
      WHERE (charge.instance_id IS NOT NULL) <> (instance.state = 'vmm' AND vmm.state IS DISTINCT FROM 'saga_unwound')
        AND NOT (charge.instance_id IS NOT NULL AND vmm.state IS NOT DISTINCT FROM 'saga_unwound')`,
  },
  {
    name: 'unwound holds nothing',
    invariant: 10,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s was unwound but holds a %s reservation', vmm.id, ${NAME}, held.kind)
      FROM vmm JOIN sled_reservation held ON held.vmm_id = vmm.id LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.state = 'saga_unwound' AND held.kind <> 'tombstoned'
      UNION ALL
      SELECT instance.id, vmm.sled_id, format('instance %s is charged although its active VMM %s was unwound', instance.name, vmm.id)
      FROM instance JOIN vmm ON vmm.id = instance.active_vmm_id JOIN provisioning_charge charge ON charge.instance_id = instance.id
      WHERE vmm.state = 'saga_unwound'`,
  },
  {
    name: 'unwound migration is over',
    invariant: 10,
    holds: 'always',
    query: `
      SELECT migration.instance_id, vmm.sled_id, format('target VMM %s was unwound, but its side of migration %s is %s', vmm.id, migration.id, migration.target_state)
      FROM migration JOIN vmm ON vmm.id = migration.target_vmm_id
      WHERE vmm.state = 'saga_unwound' AND migration.target_state NOT IN ('completed', 'failed')`,
  },
  {
    name: 'failed call unwound',
    invariant: 10,
    holds: 'always',
    query: `
      SELECT operation.instance_id, vmm.sled_id, format('the caller of %s %s was told that it failed, but its VMM %s is %s', operation.kind, operation.id, vmm.id, vmm.state)
      FROM operation JOIN vmm ON vmm.id = operation.vmm_id
      WHERE operation.succeeded = false AND vmm.time_deleted IS NULL AND vmm.state <> 'saga_unwound'`,
  },
  {
    name: 'succeeded call not unwound',
    invariant: 5,
    holds: 'always',
    query: `
      SELECT operation.instance_id, vmm.sled_id, format('the caller of %s %s was told that it succeeded, but its VMM %s is %s', operation.kind, operation.id, vmm.id,
        CASE WHEN vmm.state = 'saga_unwound' THEN 'unwound' ELSE 'being unwound since ' || vmm.unwinding_since END)
      FROM operation JOIN vmm ON vmm.id = operation.vmm_id
      WHERE operation.succeeded AND vmm.unwinding_since IS NOT NULL`,
  },
  {
    name: 'reservation iff linked or living',
    invariant: 8,
    holds: 'at rest',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is %s and linked by nobody, but holds a %s reservation', vmm.id, ${NAME}, vmm.state, held.kind)
      FROM sled_reservation held JOIN vmm ON vmm.id = held.vmm_id LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.state IN ${GONE} AND NOT ${LINKED} AND NOT ${AWAITS_SLED}`,
  },
  {
    name: 'gone VMM deleted',
    invariant: 8,
    holds: 'at rest',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is %s%s and not deleted', vmm.id, ${NAME}, vmm.state,
        CASE WHEN ${LINKED} THEN ', still named by its instance,' ELSE '' END)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.state IN ${GONE} AND (${LINKED} OR NOT ${AWAITS_SLED})`,
  },
  {
    name: 'migration cleared',
    invariant: 8,
    holds: 'at rest',
    query: `
      SELECT instance.id, NULL::uuid, format('instance %s still names migration %s (source %s, target %s)', instance.name, migration.id, source_state, target_state)
      FROM instance JOIN migration ON migration.id = instance.migration_id
      WHERE migration.source_state IN ('completed', 'failed') OR migration.target_state IN ('completed', 'failed')`,
  },
  {
    name: 'leftover ended',
    invariant: 8,
    holds: 'at rest',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is %s, but no instance names it and its guest never left it', vmm.id, ${NAME}, vmm.state)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE} AND NOT ${LINKED}
        AND NOT EXISTS (SELECT 1 FROM migration WHERE source_vmm_id = vmm.id AND 'completed' IN (source_state, target_state))`,
  },
  {
    name: 'deleted instance destroyed',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT id, NULL::uuid, format('instance %s was deleted but is in state %s', name, state)
      FROM instance WHERE time_deleted IS NOT NULL AND state <> 'destroyed'`,
  },
  {
    name: 'settled once all VMMs are gone',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT instance.id, NULL::uuid, format('instance %s is incarnated, but none of its VMMs lives: it shows Stopping or Migrating for ever', instance.name)
      FROM instance LEFT JOIN vmm active ON active.id = instance.active_vmm_id
      WHERE instance.state = 'vmm' AND active.state IS DISTINCT FROM 'saga_unwound'
        AND NOT EXISTS (SELECT 1 FROM vmm WHERE vmm.instance_id = instance.id AND vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE})`,
  },
  {
    name: 'created or unwound',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT vmm.instance_id, vmm.sled_id, format('VMM %s of instance %s is %s%s, and nobody sees to it', vmm.id, ${NAME}, vmm.state,
        CASE WHEN vmm.unwinding_since IS NULL THEN '' ELSE ', unwinding since ' || vmm.unwinding_since END)
      FROM vmm LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE} AND (vmm.state = 'creating' OR vmm.unwinding_since IS NOT NULL)`,
  },
  {
    name: 'stop carried',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT instance.id, vmm.sled_id, format('instance %s is meant to be %s, but its VMM %s is %s and nobody stops it', instance.name, instance.intended_state, vmm.id, vmm.state)
      FROM instance JOIN vmm ON vmm.id = instance.active_vmm_id
      WHERE instance.intended_state IN ('stopped', 'destroyed') AND vmm.state NOT IN ${GONE} AND vmm.state NOT IN ('stopping', 'stopped')`,
  },
  {
    name: 'operation ended',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT operation.instance_id, NULL::uuid, format('%s %s (%s) has no outcome', operation.kind, operation.id, operation.workflow_id)
      FROM operation WHERE time_ended IS NULL`,
  },
  {
    name: 'nobody on an expunged sled',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT vmm.instance_id, sled.id, format('VMM %s of instance %s is %s on sled %s, which was expunged', vmm.id, ${NAME}, vmm.state, sled.name)
      FROM vmm JOIN sled ON sled.id = vmm.sled_id LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE sled.policy = 'expunged' AND vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE}`,
  },
  {
    name: 'nobody on a dead sled',
    invariant: 4,
    holds: 'always',
    query: `
      SELECT vmm.instance_id, sled.id, format('VMM %s of instance %s is %s on sled %s, which was declared dead at %s', vmm.id, ${NAME}, vmm.state, sled.name, sled.time_declared_dead)
      FROM vmm JOIN sled ON sled.id = vmm.sled_id LEFT JOIN instance ON instance.id = vmm.instance_id
      WHERE sled.time_declared_dead IS NOT NULL AND vmm.time_deleted IS NULL AND vmm.state NOT IN ${GONE} AND vmm.unwinding_since IS NULL`,
  },
  {
    name: 'an expunge comes to its end',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT NULL::uuid, sled.id, format('sled %s was expunged at %s, and VMMs are still placed there: it answers and ends them not, or has fallen silent since: power it off, and expunge it once more', sled.name, sled.expunging_since)
      FROM sled
      WHERE sled.policy <> 'expunged' AND sled.expunging_since IS NOT NULL
        -- A minute beyond what its lease and margin take: the loops come every few seconds.
        AND sled.expunging_since + coalesce(sled.lease_ms, 0) * 1.5 * interval '1 millisecond' < now() - interval '1 minute'`,
  },
  {
    name: 'lapsed lease judged',
    invariant: 9,
    holds: 'at rest',
    query: `
      SELECT NULL::uuid, sled.id, format('sled %s renewed its lease of %s ms last at %s, and nobody judges that: is the reconciler "fencing" on?', sled.name, sled.lease_ms, sled.lease_renewed_at)
      FROM sled CROSS JOIN lease_service
      WHERE sled.lease_ms IS NOT NULL AND sled.policy <> 'expunged' AND sled.time_declared_dead IS NULL
        AND lease_service.last_beat_at > now() - sled.lease_ms / 6.0 * interval '1 millisecond'
        -- A minute beyond what the verdict waits for: the loop comes every few seconds.
        AND greatest(sled.lease_renewed_at, (SELECT max(ended_at) FROM lease_service_gap)) + sled.lease_ms * 1.5 * interval '1 millisecond'
          < now() - interval '1 minute'`,
  },
  {
    name: 'leases can be judged',
    invariant: 9,
    holds: 'always',
    query: `
      SELECT NULL::uuid, NULL::uuid, 'lease_service has no row: no dead sled is ever found out'
      WHERE NOT EXISTS (SELECT 1 FROM lease_service)`,
  },
];
