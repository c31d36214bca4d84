import { type SQL, sql } from 'drizzle-orm';
import { type AuditRecord, auditStatement } from '../audit-record.ts';
import type { Database } from '../connect.ts';
import {
  type InstanceRecord,
  isNamed,
  type NamedInstance,
  selectInstances,
  withExternalState,
} from '../queries/read-instance.ts';
import { instance } from '../schema.ts';
import { type RequestKey, readTakenKey, restOf, type TakenKey, takeKeyStatement } from './take-key.ts';

/** The instance that a call is about. */
export interface CalledInstance {
  readonly record: InstanceRecord;
  /** The call's key, whoever has taken it; `null` for a call without one. */
  readonly taken: TakenKey | null;
}

/**
 * Finds the instance of a call that may begin a saga; in the same statement it takes the call's key and writes the call's
 * audit record, which has only begun. `null`, and nothing is written, when there is no such instance.
 */
export async function findForCall(
  db: Database,
  named: NamedInstance,
  { key, audit }: { readonly key: RequestKey | undefined; readonly audit: AuditRecord | null },
): Promise<CalledInstance | null> {
  const subject = db
    .$with('subject')
    .as(db.select({ id: instance.id, projectId: instance.projectId }).from(instance).where(isNamed(named)));
  const written: ReturnType<typeof part>[] = [];
  if (audit !== null) {
    const within = { from: sql`subject`, subject: sql`subject.id::text`, projectId: sql`subject.project_id` };
    written.push(part(db, 'recorded', auditStatement(audit, within)));
  }
  if (key !== undefined) {
    const rows = sql`SELECT ${key.value}::uuid, ${key.call}::keyed_call, id, ${restOf(key)} FROM subject`;
    written.push(part(db, 'taken', takeKeyStatement(rows)));
  }
  const taken = key === undefined ? sql`NULL` : sql`(SELECT to_jsonb(taken) FROM taken)`;
  const [row] = await selectInstances(db.with(subject, ...written), { taken }).where(isNamed(named));
  if (row === undefined) return null;
  return { record: withExternalState(row), taken: key === undefined ? null : readTakenKey(row.taken, key) };
}

function part(db: Database, name: string, statement: SQL) {
  return db.$with(name, {}).as(statement);
}
