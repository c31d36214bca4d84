import { sql } from 'drizzle-orm';
import type { OperationError } from '../../model/failures.ts';
import type { Refusal } from '../../model/refusal.ts';
import type { OperationKind } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/** Records that an operation was refused before anything was written. */
export async function recordRefusedOperation(
  db: Queryable,
  operation: { kind: OperationKind; instanceId: string; operationId: string; workflowId: string; error: Refusal },
): Promise<void> {
  const error: OperationError = {
    status: operation.error.status,
    error_code: operation.error.code,
    message: operation.error.message,
  };
  await db.execute(sql`/* refuse-operation */
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, error, time_ended)
    SELECT ${operation.operationId}, ${operation.kind}, id, ${operation.workflowId}, false, ${JSON.stringify(error)}::jsonb, now()
    FROM instance WHERE id = ${operation.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}
