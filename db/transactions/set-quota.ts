import { eq, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { project } from '../schema.ts';

/**
 * Sets a project's quota, in CPUs and bytes; `null` is unlimited. One below what is in use only stops new starts. Throws a
 * {@link Refusal} for a project that isn't there.
 */
export async function setQuota(
  db: Database,
  projectId: string,
  quota: { cpus: number | null; memoryBytes: number | null },
) {
  return db.transaction(async (transaction) => {
    const [row] = await transaction
      .update(project)
      .set({ quotaCpus: quota.cpus, quotaMemoryBytes: quota.memoryBytes, timeModified: sql`now()` })
      .where(eq(project.id, projectId))
      .returning();
    if (row === undefined) throw Refusal.notFound('project', projectId);
    return row;
  });
}
