import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { OperationError } from '../../model/failures.ts';
import type { Refusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';

/** Records that an operation was refused before anything was written. */
export async function recordRefusedOperation(
  db: Queryable,
  attempt: Omit<Attempt, 'vmmId'> & { error: Refusal },
): Promise<void> {
  const error: OperationError = {
    status: attempt.error.status,
    error_code: attempt.error.code,
    message: attempt.error.message,
  };
  await db.execute(sql`/* refuse-operation */
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, error, time_ended)
    SELECT ${attempt.operationId}, ${attempt.kind}, id, ${attempt.workflowId}, false, ${JSON.stringify(error)}::jsonb, now()
    FROM instance WHERE id = ${attempt.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}
