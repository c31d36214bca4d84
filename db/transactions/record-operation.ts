import type { OperationKind } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { operation } from '../schema.ts';

/** Records that an operation has begun, without a VMM; one that is on record already is left as it is. */
export async function recordOperation(
  db: Queryable,
  begun: {
    readonly id: string;
    readonly kind: OperationKind;
    readonly instanceId: string;
    readonly workflowId: string;
  },
): Promise<void> {
  await db.insert(operation).values(begun).onConflictDoNothing();
}
