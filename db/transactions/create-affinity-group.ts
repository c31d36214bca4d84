import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { type AffinityKind, type AffinityPolicy, type FailureDomain, groupNoun } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { type AffinityGroupRow, affinityGroup } from '../schema.ts';

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
  return refuseTakenName('affinity_group_name', groupNoun(values.kind), values.name, () =>
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
