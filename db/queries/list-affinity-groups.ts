import { and, asc, desc, eq, gt, inArray, lt, type SQL } from 'drizzle-orm';
import type { AffinityKind } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { type AffinityGroupRow, affinityGroup, affinityGroupMember, instance } from '../schema.ts';
import type { ListOrder } from './list-instances.ts';
import { type InstanceRecord, readInstances } from './read-instance.ts';

/** A page of a list: at most `limit` items after the one that `after` names (an id or a name, as the order says). */
export interface Page {
  readonly order: ListOrder;
  readonly after: string | null;
  readonly limit: number;
}

type Named = typeof affinityGroup | typeof instance;

function beyond(table: Named, page: Page): SQL | undefined {
  if (page.after === null) return undefined;
  if (page.order === 'id_ascending') return gt(table.id, page.after);
  return page.order === 'name_ascending' ? gt(table.name, page.after) : lt(table.name, page.after);
}

function ordered(table: Named, page: Page): SQL {
  if (page.order === 'id_ascending') return asc(table.id);
  return page.order === 'name_ascending' ? asc(table.name) : desc(table.name);
}

/** Lists the groups of a project, or those that an instance is in. */
export async function listAffinityGroups(
  db: Queryable,
  kind: AffinityKind,
  of: { readonly projectId: string } | { readonly instanceId: string },
  page: Page,
): Promise<AffinityGroupRow[]> {
  const among =
    'projectId' in of
      ? eq(affinityGroup.projectId, of.projectId)
      : inArray(
          affinityGroup.id,
          db
            .select({ id: affinityGroupMember.groupId })
            .from(affinityGroupMember)
            .where(eq(affinityGroupMember.instanceId, of.instanceId)),
        );
  return db
    .select()
    .from(affinityGroup)
    .where(and(eq(affinityGroup.kind, kind), among, beyond(affinityGroup, page)))
    .orderBy(ordered(affinityGroup, page))
    .limit(page.limit);
}

/** Lists the members of a group, with what they show. */
export async function listAffinityMembers(db: Queryable, groupId: string, page: Page): Promise<InstanceRecord[]> {
  const rows = await db
    .select({ id: instance.id })
    .from(affinityGroupMember)
    .innerJoin(instance, eq(instance.id, affinityGroupMember.instanceId))
    .where(and(eq(affinityGroupMember.groupId, groupId), beyond(instance, page)))
    .orderBy(ordered(instance, page))
    .limit(page.limit);
  const records = await readInstances(
    db,
    rows.map((row) => row.id),
  );
  const byId = new Map(records.map((record) => [record.instance.id, record]));
  return rows.flatMap((row) => byId.get(row.id) ?? []);
}
