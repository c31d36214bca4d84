import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * Records the operation that a call with a key began or joined. The first one counts. The call's audit record, by its id,
 * gets it in the same statement: should nobody be left to complete it, the operation's end does.
 */
export async function settleKey(
  db: Queryable,
  key: string,
  operationId: string,
  auditId: string | null = null,
): Promise<void> {
  await db.execute(sql`/* settle-key */
    ${auditId === null ? sql`` : sql`WITH noted AS (UPDATE audit_log SET saga_operation_id = ${operationId} WHERE id = ${auditId})`}
    UPDATE idempotency_key SET operation_id = ${operationId} WHERE key = ${key} AND operation_id IS NULL`);
}
