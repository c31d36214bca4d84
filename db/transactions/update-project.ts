import { and, eq, isNull, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { project } from '../schema.ts';

/** Renames or describes a project. Throws a {@link Refusal} for a name that is taken, or a project that isn't there. */
export async function updateProject(db: Database, projectId: string, values: { name?: string; description?: string }) {
  return refuseTakenName('project_name', 'project', values.name ?? '', () =>
    db.transaction(async (transaction) => {
      const [row] = await transaction
        .update(project)
        .set({ ...values, timeModified: sql`now()` })
        .where(and(eq(project.id, projectId), isNull(project.timeDeleted)))
        .returning();
      if (row === undefined) throw Refusal.notFound('project', projectId);
      return row;
    }),
  );
}
