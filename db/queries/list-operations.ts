import { and, desc, eq, inArray, isNotNull, isNull, type SQL, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { instance, operation } from '../schema.ts';
import type { OperationRow } from './read-operation.ts';

/** An operation, and whose instance it is of. */
export interface ListedOperation {
  readonly operation: OperationRow;
  readonly instanceName: string;
  readonly projectId: string;
}

/** A place in the list: behind this operation. The time is text, as exact as the database has it. */
export interface OperationPlace {
  readonly time: string;
  readonly id: string;
}

function select<More extends Record<string, SQL>>(db: Queryable, more: More) {
  return db
    .select({ operation, instanceName: instance.name, projectId: instance.projectId, ...more })
    .from(operation)
    .innerJoin(instance, eq(instance.id, operation.instanceId));
}

/** Reads operations by their ids, in no order; those that aren't there are left out. */
export async function readOperations(db: Queryable, operationIds: readonly string[]): Promise<ListedOperation[]> {
  if (operationIds.length === 0) return [];
  return select(db, {}).where(inArray(operation.id, [...operationIds]));
}

/** Lists at most `limit` operations, the newest first, behind `after`. `since` is when they began at the earliest. */
export async function listOperations(
  db: Queryable,
  query: {
    projectId: string | null;
    instanceId: string | null;
    isOver: boolean | null;
    succeeded: boolean | null;
    since: Date | null;
    after: OperationPlace | null;
    limit: number;
  },
): Promise<{ listed: ListedOperation; place: OperationPlace }[]> {
  const { projectId, instanceId, isOver, succeeded, since, after } = query;
  const rows = await select(db, { time: sql<string>`${operation.timeStarted}::text` })
    .where(
      and(
        projectId === null ? undefined : eq(instance.projectId, projectId),
        instanceId === null ? undefined : eq(operation.instanceId, instanceId),
        isOver === null ? undefined : isOver ? isNotNull(operation.timeEnded) : isNull(operation.timeEnded),
        succeeded === null ? undefined : eq(operation.succeeded, succeeded),
        since === null ? undefined : sql`${operation.timeStarted} >= ${since.toISOString()}::timestamptz`,
        after === null
          ? undefined
          : sql`(${operation.timeStarted}, ${operation.id}) < (${after.time}::timestamptz, ${after.id}::uuid)`,
      ),
    )
    .orderBy(desc(operation.timeStarted), desc(operation.id))
    .limit(query.limit);
  return rows.map(({ time, ...listed }) => ({ listed, place: { time, id: listed.operation.id } }));
}
