import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { Queryable } from '../connect.ts';

/**
 * Records that an operation succeeded whose VMM was commanded, under that VMM's lock; not while it is being unwound, or
 * after that. Does nothing a second time. Returns whether the VMM stands: then the operation has succeeded, now or before.
 */
export async function recordSucceededOperation(db: Queryable, attempt: Attempt): Promise<boolean> {
  const result = await db.execute(sql`/* succeed-operation */
    WITH own AS MATERIALIZED (
      SELECT id, instance_id, unwinding_since IS NULL AS stands FROM vmm WHERE id = ${attempt.vmmId} FOR UPDATE
    ), succeeded AS (
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
      SELECT ${attempt.operationId}, ${attempt.kind}, instance_id, id, ${attempt.workflowId}, true, now() FROM own WHERE stands
      ON CONFLICT (id) DO UPDATE SET succeeded = true, time_ended = now()
      WHERE operation.time_ended IS NULL
    )
    SELECT 1 FROM own WHERE stands`);
  return result.rows.length > 0;
}

/**
 * Records that an operation succeeded for which nothing need be claimed, which closes the door on every claim of it that is
 * still on its way: an operation that is over takes no VMM. Does nothing a second time. Returns `false` where an attempt of
 * it beside this one has claimed its VMM, or has ended it.
 */
export async function recordNothingToDo(db: Queryable, attempt: Omit<Attempt, 'vmmId'>): Promise<boolean> {
  const result = await db.execute(sql`/* succeed-operation */
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, time_ended)
    SELECT ${attempt.operationId}, ${attempt.kind}, id, ${attempt.workflowId}, true, now()
    FROM instance WHERE id = ${attempt.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = true, time_ended = now()
    WHERE operation.time_ended IS NULL AND operation.vmm_id IS NULL
    RETURNING id`);
  return result.rows.length > 0;
}
