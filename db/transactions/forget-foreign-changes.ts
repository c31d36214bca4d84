import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * Empties the log of changes where its numbers are of another history of the database, as after a dump was restored or another
 * server took over: they would count as new for as long as they are ahead. Several may do so at once. What is committed
 * beside it may go as well: so every reader begins anew that stands before this transaction.
 */
export async function forgetForeignChanges(db: Queryable): Promise<void> {
  await db.execute(sql`/* forget-foreign-changes */
    WITH horizon AS (
      UPDATE change_horizon SET database_history = database_history(), forgotten_to = pg_current_xact_id()
      WHERE database_history <> database_history() RETURNING 1
    )
    DELETE FROM change_log WHERE EXISTS (SELECT FROM horizon)`);
}
