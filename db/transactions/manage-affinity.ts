/** Affinity and anti-affinity groups as records: made, renamed, deleted, joined and left. Who may join, the schema says. */
import { randomUUID } from 'node:crypto';
import { and, eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { type AffinityKind, type AffinityPolicy, type FailureDomain, groupNoun } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import type { AffinityGroupRow } from '../queries/affinity-groups.ts';
import { affinityGroup, affinityGroupMember } from '../schema.ts';

async function naming<T>(kind: AffinityKind, name: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (error) {
    if (violatedConstraint(error) === 'affinity_group_name') throw Refusal.nameTaken(groupNoun(kind), name);
    throw error;
  }
}

/** Creates a group without members. Throws a {@link Refusal} for a name that is taken or a project that is deleted. */
export async function createAffinityGroup(
  db: Database,
  values: {
    projectId: string;
    kind: AffinityKind;
    name: string;
    description: string;
    policy: AffinityPolicy;
    failureDomain: FailureDomain;
  },
): Promise<AffinityGroupRow> {
  return naming(values.kind, values.name, () =>
    db.transaction(async (transaction) => {
      // So that the project isn't deleted meanwhile.
      const found = await transaction.execute(
        sql`SELECT 1 FROM project WHERE id = ${values.projectId} AND time_deleted IS NULL FOR SHARE`,
      );
      if (found.rows.length === 0) throw Refusal.notFound('project', values.projectId);
      const [row] = await transaction
        .insert(affinityGroup)
        .values({ id: randomUUID(), ...values })
        .returning();
      if (row === undefined) throw new Error('the group was not returned');
      return row;
    }),
  );
}

/** Renames or describes a group; its policy is fixed, as in the Oxide API. Throws a {@link Refusal}. */
export async function updateAffinityGroup(
  db: Database,
  group: AffinityGroupRow,
  changes: { name?: string; description?: string },
): Promise<AffinityGroupRow> {
  return naming(group.kind, changes.name ?? '', () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .update(affinityGroup)
        .set({ ...changes, timeModified: sql`now()` })
        .where(eq(affinityGroup.id, group.id))
        .returning();
      if (row === undefined) throw Refusal.notFound(groupNoun(group.kind), group.id);
      return row;
    }),
  );
}

/** Deletes a group; its members stay where they are and are bound by it no more. Throws a {@link Refusal}. */
export async function deleteAffinityGroup(db: Database, group: AffinityGroupRow): Promise<void> {
  await db.transaction(async (transaction) => {
    const deleted = await transaction.delete(affinityGroup).where(eq(affinityGroup.id, group.id)).returning();
    if (deleted.length === 0) throw Refusal.notFound(groupNoun(group.kind), group.id);
  });
}

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

/** Takes a member out, whatever its state. Throws a {@link Refusal} for one that is no member. */
export async function removeAffinityMember(
  db: Database,
  group: AffinityGroupRow,
  instance: { readonly id: string; readonly name: string },
): Promise<void> {
  const removed = await db
    .delete(affinityGroupMember)
    .where(and(eq(affinityGroupMember.groupId, group.id), eq(affinityGroupMember.instanceId, instance.id)))
    .returning();
  if (removed.length === 0) throw Refusal.notFound(`member of ${groupNoun(group.kind)} "${group.name}"`, instance.name);
}
