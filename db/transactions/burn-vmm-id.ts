import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { Queryable } from '../connect.ts';

/**
 * Makes sure that a VMM id is taken: where its claim has not arrived, it never will. Does nothing where the attempt's
 * operation has ended, which keeps every claim out as well. The operation's row before the VMM's, as in a claim.
 */
export async function burnVmmId(db: Queryable, attempt: Attempt): Promise<void> {
  const { operationId, kind, instanceId, vmmId, workflowId } = attempt;
  await db.execute(sql`/* burn-vmm-id */
    WITH taken AS (
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id)
      SELECT ${operationId}, ${kind}, id, ${vmmId}, ${workflowId} FROM instance WHERE id = ${instanceId}
      ON CONFLICT (id) DO UPDATE SET vmm_id = excluded.vmm_id WHERE operation.time_ended IS NULL
      RETURNING instance_id
    )
    INSERT INTO vmm (id, instance_id, state, unwinding_since, time_deleted)
    SELECT ${vmmId}, instance_id, 'saga_unwound', now(), now() FROM taken
    ON CONFLICT (id) DO NOTHING`);
}
