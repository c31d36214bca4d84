import { and, eq, inArray, isNull, type SQL } from 'drizzle-orm';
import { alias } from 'drizzle-orm/pg-core';
import { deriveExternalState } from '../../model/external-state.ts';
import type { InstanceFacts, VmmFacts } from '../../model/snapshot.ts';
import type { ExternalState } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { instance, migration, project, vmm } from '../schema.ts';

export const active = alias(vmm, 'active');

const target = alias(vmm, 'target');

type InstanceRow = typeof instance.$inferSelect;

type VmmRow = typeof vmm.$inferSelect;

type MigrationRow = typeof migration.$inferSelect;

/** An instance with what it names, read in one statement, and the state that it shows. */
export interface InstanceRecord {
  readonly instance: InstanceRow;
  readonly projectName: string;
  readonly active: VmmRow | null;
  readonly target: VmmRow | null;
  readonly migration: MigrationRow | null;
  readonly externalState: ExternalState;
}

function vmmFacts(row: VmmRow | null): VmmFacts | null {
  return row === null ? null : { id: row.id, state: row.state, unwinding: row.unwindingSince !== null };
}

/** The facts of a record, as the pure functions of the model take them. */
export function instanceFacts(record: Omit<InstanceRecord, 'externalState' | 'projectName'>): InstanceFacts {
  return {
    state: record.instance.state,
    intendedState: record.instance.intendedState,
    active: vmmFacts(record.active),
    target: vmmFacts(record.target),
    migration: record.migration,
  };
}

/** Selects instances with what they name, and `more` of them; the caller adds which. */
export function selectInstances<More extends Record<string, SQL> = Record<never, SQL>>(
  db: Pick<Queryable, 'select'>,
  more: More = {} as More,
) {
  return db
    .select({ instance, projectName: project.name, active, target, migration, ...more })
    .from(instance)
    .innerJoin(project, eq(project.id, instance.projectId))
    .leftJoin(active, eq(active.id, instance.activeVmmId))
    .leftJoin(target, eq(target.id, instance.targetVmmId))
    .leftJoin(migration, eq(migration.id, instance.migrationId));
}

/** A row of {@link selectInstances} with the state that it shows. */
export function withExternalState(row: Omit<InstanceRecord, 'externalState'>): InstanceRecord {
  return { ...row, externalState: deriveExternalState(instanceFacts(row)) };
}

/** Reads an instance by id, a deleted one included; `null` when there is none. */
export async function readInstance(db: Queryable, instanceId: string): Promise<InstanceRecord | null> {
  const [row] = await selectInstances(db).where(eq(instance.id, instanceId));
  return row === undefined ? null : withExternalState(row);
}

/** Reads instances by their ids, in no order; those that aren't there are left out. */
export async function readInstances(db: Queryable, instanceIds: readonly string[]): Promise<InstanceRecord[]> {
  if (instanceIds.length === 0) return [];
  const rows = await selectInstances(db).where(inArray(instance.id, [...instanceIds]));
  return rows.map(withExternalState);
}

/** How a caller names an instance that isn't deleted: by its id, or by its name within a project. */
export type NamedInstance = { readonly id: string } | { readonly projectId: string; readonly name: string };

/** The condition on `instance` that finds it. */
export function isNamed(named: NamedInstance): SQL | undefined {
  return and(
    'id' in named ? eq(instance.id, named.id) : eq(instance.projectId, named.projectId),
    'id' in named ? undefined : eq(instance.name, named.name),
    isNull(instance.timeDeleted),
  );
}

/** Finds an instance that isn't deleted; `null` when there is none. */
export async function findInstance(db: Queryable, named: NamedInstance): Promise<InstanceRecord | null> {
  const [row] = await selectInstances(db).where(isNamed(named));
  return row === undefined ? null : withExternalState(row);
}
