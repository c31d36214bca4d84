import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { OperationError } from '../../model/failures.ts';
import type { Refusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import { readOperation } from '../queries/read-operation.ts';

/** A claim was made and unwound before: by an earlier run of the same attempt, or by whoever ended it. */
export class AlreadyUnwound extends Error {
  override readonly name = 'AlreadyUnwound';
  /** What its caller was answered. */
  readonly body: OperationError;

  constructor(body: OperationError) {
    super(body.message);
    this.body = body;
  }
}

/**
 * What an operation that was to be refused came to. `refused`: it has been, now or before. `succeeded`: it had. `claimed`:
 * an attempt of it beside this one has claimed its VMM, so that it is not over. `unwound`: it had claimed its VMM and failed.
 */
export type RefusedOperation =
  | { readonly outcome: 'refused' | 'succeeded' | 'claimed' }
  | { readonly outcome: 'unwound'; readonly error: OperationError };

/**
 * Records that an operation was refused before anything was written, which closes the door on every claim of it that is
 * still on its way: an operation that is over takes no VMM. One whose VMM was claimed is not refused any more, unless
 * that VMM was unwound.
 */
export async function recordRefusedOperation(
  db: Queryable,
  attempt: Omit<Attempt, 'vmmId'> & { error: Refusal },
): Promise<RefusedOperation> {
  const error: OperationError = {
    status: attempt.error.status,
    error_code: attempt.error.code,
    message: attempt.error.message,
  };
  const refused = await db.execute(sql`/* refuse-operation */
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, error, time_ended)
    SELECT ${attempt.operationId}, ${attempt.kind}, id, ${attempt.workflowId}, false, ${JSON.stringify(error)}::jsonb, now()
    FROM instance WHERE id = ${attempt.instanceId}
    ON CONFLICT (id) DO UPDATE SET succeeded = false, error = excluded.error, time_ended = now()
    WHERE operation.time_ended IS NULL AND (operation.vmm_id IS NULL
      OR EXISTS (SELECT 1 FROM vmm WHERE vmm.id = operation.vmm_id AND vmm.state = 'saga_unwound'))
    RETURNING id`);
  if (refused.rows.length > 0) return { outcome: 'refused' };
  const found = await readOperation(db, attempt.operationId);
  // Without an instance there is no operation.
  if (found === null) return { outcome: 'refused' };
  if (found.succeeded === null) return { outcome: 'claimed' };
  if (found.succeeded) return { outcome: 'succeeded' };
  return found.vmmId !== null && found.error !== null
    ? { outcome: 'unwound', error: found.error }
    : { outcome: 'refused' };
}
