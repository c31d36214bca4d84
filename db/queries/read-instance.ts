import { and, asc, desc, eq, gt, inArray, isNotNull, isNull, lt, type SQL, sql } from 'drizzle-orm';
import { alias } from 'drizzle-orm/pg-core';
import { deriveExternalState } from '../../model/external-state.ts';
import type { InstanceFacts, VmmFacts } from '../../model/snapshot.ts';
import type { ExternalState } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { instance, migration, vmm } from '../schema.ts';
import { type AuditRecord, auditStatement } from '../transactions/audit.ts';

const active = alias(vmm, 'active');
const target = alias(vmm, 'target');

type InstanceRow = typeof instance.$inferSelect;
type VmmRow = typeof vmm.$inferSelect;
type MigrationRow = typeof migration.$inferSelect;

/** An instance with what it names, read in one statement, and the state that it shows. */
export interface InstanceRecord {
  readonly instance: InstanceRow;
  readonly active: VmmRow | null;
  readonly target: VmmRow | null;
  readonly migration: MigrationRow | null;
  readonly externalState: ExternalState;
}

function vmmFacts(row: VmmRow | null): VmmFacts | null {
  return row === null ? null : { id: row.id, state: row.state, unwinding: row.unwindingSince !== null };
}

/** The facts of a record, as the pure functions of the model take them. */
export function instanceFacts(record: Omit<InstanceRecord, 'externalState'>): InstanceFacts {
  return {
    state: record.instance.state,
    intendedState: record.instance.intendedState,
    active: vmmFacts(record.active),
    target: vmmFacts(record.target),
    migration: record.migration,
  };
}

function select(db: Pick<Queryable, 'select'>) {
  return db
    .select({ instance, active, target, migration })
    .from(instance)
    .leftJoin(active, eq(active.id, instance.activeVmmId))
    .leftJoin(target, eq(target.id, instance.targetVmmId))
    .leftJoin(migration, eq(migration.id, instance.migrationId));
}

function withExternalState(row: Omit<InstanceRecord, 'externalState'>): InstanceRecord {
  return { ...row, externalState: deriveExternalState(instanceFacts(row)) };
}

/** Reads an instance by id, a deleted one included; `null` when there is none. */
export async function readInstance(db: Queryable, instanceId: string): Promise<InstanceRecord | null> {
  const [row] = await select(db).where(eq(instance.id, instanceId));
  return row === undefined ? null : withExternalState(row);
}

/** Reads an instance as {@link readInstance} does, and writes an audit record in the same statement. */
export async function readInstanceAndRecord(
  db: Database,
  instanceId: string,
  record: AuditRecord,
): Promise<InstanceRecord | null> {
  const recorded = db.$with('recorded', {}).as(auditStatement(record));
  const [row] = await select(db.with(recorded)).where(eq(instance.id, instanceId));
  return row === undefined ? null : withExternalState(row);
}

/** Reads instances by their ids, in no order; those that aren't there are left out. */
export async function readInstances(db: Queryable, instanceIds: readonly string[]): Promise<InstanceRecord[]> {
  if (instanceIds.length === 0) return [];
  const rows = await select(db).where(inArray(instance.id, [...instanceIds]));
  return rows.map(withExternalState);
}

/** Locks an instance's row until the transaction ends, then reads it as {@link readInstance} does. */
export async function lockInstance(transaction: Queryable, instanceId: string): Promise<InstanceRecord | null> {
  await transaction.execute(sql`SELECT 1 FROM instance WHERE id = ${instanceId} FOR UPDATE`);
  return readInstance(transaction, instanceId);
}

/** Finds an instance that isn't deleted, by its name within a project; `null` when there is none. */
export async function findInstanceByName(
  db: Queryable,
  projectId: string,
  name: string,
): Promise<InstanceRecord | null> {
  const [row] = await select(db).where(
    and(eq(instance.projectId, projectId), eq(instance.name, name), isNull(instance.timeDeleted)),
  );
  return row === undefined ? null : withExternalState(row);
}

export type ListOrder = 'id_ascending' | 'name_ascending' | 'name_descending';

/**
 * Lists at most `limit` instances that aren't deleted, after the one that `after` names (an id or a name, as the order
 * says). `shown` filters by the shown state.
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
  // What always holds of a VMM that an instance names is said, so that the partial indexes find both.
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
    const rows = await select(db)
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

function rowStatesThatShow(externalState: ExternalState): InstanceRow['state'][] {
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
