import { and, eq, isNull } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import { type AffinityKind, groupNoun } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { type AffinityGroupRow, affinityGroup, project } from '../schema.ts';

/** Finds a group by id, or by name within a project. Throws a {@link Refusal} when there is none. */
export async function requireAffinityGroup(
  db: Queryable,
  kind: AffinityKind,
  named: { readonly id: string } | { readonly name: string; readonly projectId: string },
): Promise<AffinityGroupRow> {
  const [row] = await db
    .select({ group: affinityGroup })
    .from(affinityGroup)
    .innerJoin(project, and(eq(project.id, affinityGroup.projectId), isNull(project.timeDeleted)))
    .where(
      and(
        eq(affinityGroup.kind, kind),
        'id' in named
          ? eq(affinityGroup.id, named.id)
          : and(eq(affinityGroup.projectId, named.projectId), eq(affinityGroup.name, named.name)),
      ),
    );
  if (row === undefined) throw Refusal.notFound(groupNoun(kind), 'id' in named ? named.id : named.name);
  return row.group;
}
