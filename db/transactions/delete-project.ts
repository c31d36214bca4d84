import { and, eq, isNull, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { groupNoun } from '../../model/states.ts';
import type { Database } from '../connect.ts';
import { affinityGroup, instance, project } from '../schema.ts';

/** Deletes a project. Throws a {@link Refusal} while it has instances or groups. */
export async function deleteProject(db: Database, projectId: string): Promise<void> {
  await db.transaction(async (transaction) => {
    await transaction.execute(sql`/* delete-project */ SELECT 1 FROM project WHERE id = ${projectId} FOR UPDATE`);
    const [left] = await transaction
      .select({ name: instance.name })
      .from(instance)
      .where(and(eq(instance.projectId, projectId), isNull(instance.timeDeleted)))
      .limit(1);
    if (left !== undefined) {
      throw Refusal.invalid(`the project still has instances, "${left.name}" among them: delete them first`);
    }
    const [group] = await transaction
      .select({ name: affinityGroup.name, kind: affinityGroup.kind })
      .from(affinityGroup)
      .where(eq(affinityGroup.projectId, projectId))
      .limit(1);
    if (group !== undefined) {
      throw Refusal.invalid(
        `the project still has groups, ${groupNoun(group.kind)} "${group.name}" among them: delete them first`,
      );
    }
    await transaction.update(project).set({ timeDeleted: sql`now()` }).where(eq(project.id, projectId));
  });
}
