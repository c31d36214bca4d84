import { sql } from 'drizzle-orm';
import { type AuditRecord, auditStatement } from '../audit-record.ts';
import type { Database, Queryable } from '../connect.ts';

/** Writes a record by itself. */
export async function writeAudit(db: Queryable, record: AuditRecord): Promise<void> {
  await db.execute(sql`/* audit */ ${auditStatement(record)}`);
}

/**
 * A database whose every transaction ends with a record, so that it is written if and only if the transaction commits.
 * `record` is asked at the end of each with what the transaction returned; `onCommit` is called when one has committed.
 */
export function recordingDatabase(
  db: Database,
  record: (returned: unknown) => AuditRecord,
  onCommit: () => void,
): Database {
  const transaction: Database['transaction'] = async (work, config) => {
    const returned = await db.transaction(async (inner) => {
      const result = await work(inner);
      await writeAudit(inner, record(result));
      return result;
    }, config);
    onCommit();
    return returned;
  };
  return new Proxy(db, {
    get(target, property) {
      if (property === 'transaction') return transaction;
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
