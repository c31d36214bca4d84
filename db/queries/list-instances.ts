import { and, asc, desc, eq, gt, inArray, isNotNull, isNull, lt, type SQL } from 'drizzle-orm';
import type { ExternalState, InstanceState } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { instance } from '../schema.ts';
import { active, type InstanceRecord, selectInstances, withExternalState } from './read-instance.ts';

export type ListOrder = 'id_ascending' | 'name_ascending' | 'name_descending';

/**
 * Lists at most `limit` instances that aren't deleted, after the one that `after` names (an id or a name, as the order
 * says). `externalState` filters by the state that they show.
 */
export async function listInstances(
  db: Queryable,
  query: {
    projectId?: string | undefined;
    sledId?: string | undefined;
    externalState?: ExternalState | undefined;
    order: ListOrder;
    after: string | null;
    limit: number;
  },
): Promise<InstanceRecord[]> {
  const base: (SQL | undefined)[] = [isNull(instance.timeDeleted)];
  if (query.projectId !== undefined) base.push(eq(instance.projectId, query.projectId));
  // Conditions that hold for every VMM that an instance names stand here too, so that the partial indexes find both.
  if (query.sledId !== undefined)
    base.push(eq(active.sledId, query.sledId), isNull(active.timeDeleted), isNotNull(instance.activeVmmId));
  if (query.externalState !== undefined) base.push(inArray(instance.state, rowStatesThatShow(query.externalState)));

  const column = query.order === 'id_ascending' ? instance.id : instance.name;
  const found: InstanceRecord[] = [];
  let after = query.after;
  // The shown state is a function of the code, not a column: a filter reads on until the page is full.
  for (;;) {
    const beyond =
      after === null ? undefined : query.order === 'name_descending' ? lt(column, after) : gt(column, after);
    const rows = await selectInstances(db)
      .where(and(...base, beyond))
      .orderBy(query.order === 'name_descending' ? desc(column) : asc(column))
      .limit(query.limit);
    for (const row of rows) {
      const record = withExternalState(row);
      if (query.externalState === undefined || record.externalState === query.externalState) found.push(record);
      if (found.length === query.limit) return found;
    }
    const last = rows.at(-1);
    if (last === undefined || rows.length < query.limit) return found;
    after = query.order === 'id_ascending' ? last.instance.id : last.instance.name;
  }
}

function rowStatesThatShow(externalState: ExternalState): InstanceState[] {
  switch (externalState) {
    case 'creating':
      return ['creating'];
    case 'failed':
      return ['failed'];
    case 'stopped':
      return ['no_vmm', 'vmm'];
    default:
      return ['vmm'];
  }
}
