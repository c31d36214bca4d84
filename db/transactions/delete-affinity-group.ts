import { eq } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { groupNoun } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { type AffinityGroupRow, affinityGroup } from '../schema.ts';

/** Deletes a group; its members stay where they are and are bound by it no more. Throws a {@link Refusal}. */
export async function deleteAffinityGroup(db: Database, group: AffinityGroupRow): Promise<void> {
  await db.transaction(async (transaction) => {
    const deleted = await transaction.delete(affinityGroup).where(eq(affinityGroup.id, group.id)).returning();
    if (deleted.length === 0) throw Refusal.notFound(groupNoun(group.kind), group.id);
  });
}
