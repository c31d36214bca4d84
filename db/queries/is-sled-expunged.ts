import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** Whether an operator has expunged a sled, though guests of it may run still. A sled that isn't there was not. */
export async function isSledExpunged(db: Queryable, sledId: string): Promise<boolean> {
  const found = await db.execute(sql`
    SELECT 1 FROM sled WHERE id = ${sledId} AND (policy = 'expunged' OR expunging_since IS NOT NULL)`);
  return found.rows.length > 0;
}
