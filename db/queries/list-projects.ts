import { and, asc, eq, gt, isNull } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { project } from '../schema.ts';

export type ProjectRow = typeof project.$inferSelect;

/**
 * Lists at most `limit` projects that aren't deleted, by name, after the one whose name is `after`; with `projectId` that
 * one at most.
 */
export async function listProjects(
  db: Queryable,
  query: { readonly projectId: string | null; readonly after: string | null; readonly limit: number },
): Promise<ProjectRow[]> {
  return db
    .select()
    .from(project)
    .where(
      and(
        isNull(project.timeDeleted),
        query.projectId === null ? undefined : eq(project.id, query.projectId),
        query.after === null ? undefined : gt(project.name, query.after),
      ),
    )
    .orderBy(asc(project.name))
    .limit(query.limit);
}
