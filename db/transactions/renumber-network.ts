import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** How many entries one statement numbers anew: it holds their locks for some milliseconds. */
const BATCH = 1_000;

/**
 * Gives the network's entries whose transaction is still to come a number of this history of the database, as it must be after a
 * dump was restored into another cluster: else pollers get them with every poll until the numbers have caught up. Batch by
 * batch, and several may do so at once; what somebody else is writing to gets its number by that.
 */
export async function renumberNetwork(db: Queryable): Promise<void> {
  for (;;) {
    const renumbered = await db.execute(sql`/* renumber-network */
      WITH ahead AS MATERIALIZED (
        SELECT instance_id FROM instance_network WHERE changed_in >= pg_snapshot_xmax(pg_current_snapshot())
        ORDER BY changed_in, instance_id LIMIT ${BATCH} FOR UPDATE SKIP LOCKED
      )
      UPDATE instance_network known SET changed_in = pg_current_xact_id(), generation = known.generation + 1
      FROM ahead WHERE known.instance_id = ahead.instance_id`);
    if ((renumbered.rowCount ?? 0) === 0) break;
  }
  // Cursors of another history begin anew whatever was forgotten in it.
  await db.execute(sql`/* renumber-network */
    UPDATE network_horizon SET database_history = database_history(), forgotten_to = '0'
    WHERE database_history <> database_history()`);
}
