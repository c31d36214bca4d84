import { sql } from 'drizzle-orm';
import type { OperationKind } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/** Records that an operation succeeded. Does nothing a second time. */
export async function recordSucceededOperation(
  db: Queryable,
  operation: { kind: OperationKind; instanceId: string; vmmId: string; operationId: string; workflowId: string },
): Promise<void> {
  await db.execute(sql`/* succeed-operation */
    INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
    SELECT ${operation.operationId}, ${operation.kind}, id, ${operation.vmmId}, ${operation.workflowId}, true, now()
    FROM instance WHERE id = ${operation.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = true, time_ended = now()
    WHERE operation.time_ended IS NULL`);
}
