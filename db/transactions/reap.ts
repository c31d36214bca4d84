/**
 * What the reaper deletes: rows that nothing names and nothing waits for. The update saga retires them in the normal
 * course; this finds what a fault, a restored backup or an older version has left. Each statement takes one batch and
 * passes over instances that someone else is just writing to.
 */
import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** How many rows one statement deletes at most. */
export const REAP_BATCH = 200;

/** A VMM that is gone and of which no sled's answer is awaited: an unwound one is, while it holds a reservation. */
const SETTLED =
  sql.raw(`(vmm.state IN ('destroyed', 'failed') OR vmm.state = 'saga_unwound' AND (vmm.vouched_gone_at IS NOT NULL
  OR NOT EXISTS (SELECT 1 FROM sled_reservation waiting WHERE waiting.vmm_id = vmm.id)
  OR EXISTS (SELECT 1 FROM sled WHERE sled.id = vmm.sled_id AND sled.policy = 'expunged')))`);
const UNLINKED = sql.raw(
  `vmm.id IS DISTINCT FROM instance.active_vmm_id AND vmm.id IS DISTINCT FROM instance.target_vmm_id`,
);

/**
 * Deletes (softly) one batch of abandoned VMM rows: gone, named by no instance, and not awaiting their sled's answer; what
 * they still reserve is released. Returns their ids.
 */
export async function reapVmms(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`/* reap */
    WITH abandoned AS (
      SELECT vmm.id FROM vmm JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND ${SETTLED} AND ${UNLINKED}
      ORDER BY vmm.id LIMIT ${REAP_BATCH} FOR UPDATE OF instance, vmm SKIP LOCKED
    ), released AS (
      DELETE FROM sled_reservation USING abandoned WHERE vmm_id = abandoned.id
    )
    UPDATE vmm SET time_deleted = now() FROM abandoned WHERE vmm.id = abandoned.id RETURNING vmm.id`);
  return result.rows.map((row) => String(row.id));
}

/**
 * Deletes one batch of orphan reservations: of a VMM whose row is deleted, or that is gone, named by no instance, and not
 * awaiting its sled's answer. Returns the ids of the VMMs.
 */
export async function reapReservations(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`/* reap */
    WITH orphan AS (
      SELECT vmm.id FROM sled_reservation held JOIN vmm ON vmm.id = held.vmm_id JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NOT NULL OR (${SETTLED} AND ${UNLINKED})
      ORDER BY vmm.id LIMIT ${REAP_BATCH} FOR UPDATE OF instance, vmm SKIP LOCKED
    )
    DELETE FROM sled_reservation USING orphan WHERE vmm_id = orphan.id RETURNING vmm_id`);
  return result.rows.map((row) => String(row.vmm_id));
}

/**
 * Deletes one batch of orphan charges: of an instance without a VMM, or whose active VMM is unwound (its unwind gives back
 * the charge in its last transaction). Such a charge would refuse every later start. Returns the ids of the instances.
 */
export async function reapCharges(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`/* reap */
    WITH orphan AS (
      SELECT instance.id FROM provisioning_charge charge JOIN instance ON instance.id = charge.instance_id
      LEFT JOIN vmm active ON active.id = instance.active_vmm_id
      WHERE instance.state <> 'vmm' OR active.state = 'saga_unwound'
      ORDER BY instance.id LIMIT ${REAP_BATCH} FOR UPDATE OF instance SKIP LOCKED
    )
    DELETE FROM provisioning_charge USING orphan WHERE instance_id = orphan.id RETURNING instance_id`);
  return result.rows.map((row) => String(row.instance_id));
}
