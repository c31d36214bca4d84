import { Refusal } from '../../model/refusal.ts';
import { groupNoun } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import { type AffinityGroupRow, affinityGroupMember } from '../schema.ts';

/**
 * Makes an instance a member, in the caller's transaction or one of its own. Throws a {@link Refusal} for one of another
 * project, one that has a place already, or where a limit is reached: the rules of Omicron's
 * `affinity_group_member_instance_add`.
 */
export async function addAffinityMember(
  db: Queryable,
  group: Pick<AffinityGroupRow, 'id' | 'name' | 'kind'>,
  instance: { readonly id: string; readonly name: string },
): Promise<void> {
  const noun = `${groupNoun(group.kind)} "${group.name}"`;
  try {
    await db.insert(affinityGroupMember).values({ groupId: group.id, instanceId: instance.id });
  } catch (error) {
    switch (violatedConstraint(error)) {
      case 'affinity_group_member_pkey':
        throw new Refusal('ObjectAlreadyExists', `instance "${instance.name}" is a member of ${noun} already`);
      case 'affinity_group_member_group_id_affinity_group_id_fk':
        throw Refusal.notFound(groupNoun(group.kind), group.name);
      case 'affinity_member_of_project':
        throw Refusal.invalid(
          `instance "${instance.name}" is not of the project of ${noun}: a group takes instances of its own project`,
        );
      case 'affinity_member_unplaced':
        throw Refusal.invalid(
          `instance "${instance.name}" can't join ${noun} while it is placed on a sled: stop it first`,
        );
      case 'affinity_group_size':
        throw Refusal.invalid(
          `${noun} has 32 members, the most that a group can have: remove one, or make another group`,
        );
      case 'affinity_groups_of_instance':
        throw Refusal.invalid(
          `instance "${instance.name}" is in 16 ${groupNoun(group.kind)}s, the most that it can be in: take it out of one first`,
        );
      default:
        throw error;
    }
  }
}
