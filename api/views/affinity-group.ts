import type { InstanceRecord } from '../../db/queries/read-instance.ts';
import type { AffinityGroupRow } from '../../db/schema.ts';
import type { AffinityGroupMember, AffinityGroupView } from '../../wire/operator-api/affinity-groups.ts';

/** A group as the API answers it. */
export function viewAffinityGroup(row: AffinityGroupRow): AffinityGroupView {
  return {
    id: row.id,
    name: row.name,
    description: row.description,
    policy: row.policy,
    failure_domain: row.failureDomain,
    project_id: row.projectId,
    time_created: row.timeCreated.toISOString(),
    time_modified: row.timeModified.toISOString(),
  };
}

/** A member of a group as the API answers it. */
export function viewAffinityMember({ instance, externalState }: InstanceRecord): AffinityGroupMember {
  return { type: 'instance', value: { id: instance.id, name: instance.name, run_state: externalState } };
}
