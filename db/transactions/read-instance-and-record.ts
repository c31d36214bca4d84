import { eq } from 'drizzle-orm';
import { type AuditRecord, auditStatement } from '../audit-record.ts';
import type { Database } from '../connect.ts';
import { type InstanceRecord, readInstance, selectInstances, withExternalState } from '../queries/read-instance.ts';
import { instance } from '../schema.ts';

/** Reads an instance as {@link readInstance} does, and writes an audit record in the same statement. */
export async function readInstanceAndRecord(
  db: Database,
  instanceId: string,
  record: AuditRecord,
): Promise<InstanceRecord | null> {
  const recorded = db.$with('recorded', {}).as(auditStatement(record));
  const [row] = await selectInstances(db.with(recorded)).where(eq(instance.id, instanceId));
  return row === undefined ? null : withExternalState(row);
}
