import { and, eq } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { groupNoun } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { type AffinityGroupRow, affinityGroupMember } from '../schema.ts';

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
