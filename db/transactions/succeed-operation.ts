import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { Queryable } from '../connect.ts';

/** Records that an operation succeeded. Does nothing a second time. */
export async function recordSucceededOperation(db: Queryable, attempt: Attempt): Promise<void> {
  await db.execute(sql`/* succeed-operation */
    INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
    SELECT ${attempt.operationId}, ${attempt.kind}, id, ${attempt.vmmId}, ${attempt.workflowId}, true, now()
    FROM instance WHERE id = ${attempt.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = true, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}
