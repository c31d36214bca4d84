import type { OperationError } from '../../model/failures.ts';
import type { OperationKind } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { operation } from '../schema.ts';

interface BegunOperation {
  readonly id: string;
  readonly kind: OperationKind;
  readonly instanceId: string;
  readonly workflowId: string;
}

/** Records that an operation has begun, without a VMM; one that is on record already is left as it is. */
export async function recordOperation(db: Queryable, begun: BegunOperation): Promise<void> {
  await db.insert(operation).values(begun).onConflictDoNothing();
}

/** Records an operation that has failed before a workflow of its own could begin. */
export async function recordFailedOperation(
  db: Queryable,
  wanted: BegunOperation,
  error: OperationError,
): Promise<void> {
  await db.insert(operation).values({ ...wanted, succeeded: false, error, timeEnded: new Date() });
}
