import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { OPERATION_KINDS, VMM_STATES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const GONE = sql.raw(`('destroyed', 'failed', 'saga_unwound')`);

/**
 * The instances that may need an update, by what an index finds quickly: a gone VMM that is not retired, a migration, a
 * stop that is not over, a VMM that its instance does not name, a charge without a VMM. The decision itself is made on a snapshot.
 */
export async function findUpdateCandidates(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT instance_id AS id FROM vmm WHERE time_deleted IS NULL AND state IN ${GONE}
    UNION SELECT id FROM instance WHERE migration_id IS NOT NULL
    UNION SELECT id FROM instance WHERE state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL)
    UNION SELECT vmm.instance_id FROM vmm JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.id IS DISTINCT FROM instance.active_vmm_id AND vmm.id IS DISTINCT FROM instance.target_vmm_id
    UNION SELECT charge.instance_id FROM provisioning_charge charge JOIN instance ON instance.id = charge.instance_id
      WHERE instance.state <> 'vmm'`);
  return result.rows.map((row) => String(row.id));
}

const openOperation = z.object({
  id: z.string(),
  kind: z.enum(OPERATION_KINDS),
  instance_id: z.string(),
  vmm_id: z.string().nullable(),
  workflow_id: z.string(),
});

/** Operations without an outcome that began at least `olderThanMs` milliseconds ago. */
export async function findOpenOperations(db: Queryable, olderThanMs: number) {
  const result = await db.execute(sql`
    SELECT id, kind, instance_id, vmm_id, workflow_id FROM operation
    WHERE time_ended IS NULL AND time_started < now() - ${olderThanMs} * interval '1 millisecond' ORDER BY time_started`);
  return result.rows.map((row) => openOperation.parse(row));
}

const sledVmm = z.object({
  id: z.string(),
  instance_id: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  deleted: z.boolean(),
  reserved: z.boolean(),
});

/** What the database knows of a sled's VMMs: the undeleted ones, and those of `ids` whatever has become of them. */
export async function readSledVmms(db: Queryable, sledId: string, ids: readonly string[]) {
  const named = JSON.stringify(ids);
  const result = await db.execute(sql`
    SELECT vmm.id, vmm.instance_id, vmm.state, vmm.unwinding_since IS NOT NULL AS unwinding, vmm.time_deleted IS NOT NULL AS deleted,
      EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id) AS reserved
    FROM vmm WHERE (sled_id = ${sledId} AND time_deleted IS NULL)
      OR id IN (SELECT value::uuid FROM jsonb_array_elements_text(${named}::jsonb))`);
  return result.rows.map((row) => sledVmm.parse(row));
}
