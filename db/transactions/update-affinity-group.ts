import { eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { groupNoun } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { type AffinityGroupRow, affinityGroup } from '../schema.ts';

/** Renames or describes a group; its policy is fixed, as in the Oxide API. Throws a {@link Refusal}. */
export async function updateAffinityGroup(
  db: Database,
  group: AffinityGroupRow,
  changes: { name?: string; description?: string },
): Promise<AffinityGroupRow> {
  return refuseTakenName('affinity_group_name', groupNoun(group.kind), changes.name ?? '', () =>
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
