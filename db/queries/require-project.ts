import { and, eq, isNull } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import { project } from '../schema.ts';

/** Finds a project by name or id. Throws a {@link Refusal} when there is none. */
export async function requireProject(db: Queryable, nameOrId: string, isId: boolean) {
  const [row] = await db
    .select()
    .from(project)
    .where(and(isId ? eq(project.id, nameOrId) : eq(project.name, nameOrId), isNull(project.timeDeleted)));
  if (row === undefined) throw Refusal.notFound('project', nameOrId);
  return row;
}
