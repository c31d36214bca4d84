import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

/**
 * The instances that may need an update, by what an index finds whatever the number of instances: a gone VMM that is not
 * retired, a migration, a stop that is not over, a VMM that lives on although its instance does not name it (its
 * reservation is tombstoned in the transaction that unlinks it). The decision itself is made on a snapshot.
 */
export async function findUpdateCandidates(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT instance_id AS id FROM vmm WHERE time_deleted IS NULL AND state IN ${goneStates}
    UNION SELECT id FROM instance WHERE migration_id IS NOT NULL
    UNION SELECT id FROM instance WHERE state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL)
    UNION SELECT instance_id FROM sled_reservation WHERE kind = 'tombstoned'`);
  return result.rows.map((row) => String(row.id));
}

/**
 * Instances in a state that no transaction of ours leaves behind: a VMM that lives and is not named, a charge without a
 * VMM. It compares whole tables, so it is for a look now and then.
 */
export async function findStrays(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT vmm.instance_id AS id FROM vmm JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.id IS DISTINCT FROM instance.active_vmm_id AND vmm.id IS DISTINCT FROM instance.target_vmm_id
    UNION SELECT charge.instance_id FROM provisioning_charge charge JOIN instance ON instance.id = charge.instance_id
      WHERE instance.state <> 'vmm'`);
  return result.rows.map((row) => String(row.id));
}
