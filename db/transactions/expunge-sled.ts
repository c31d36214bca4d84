import { sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { failSledVmms } from './fail-sled.ts';

/**
 * Expunges a sled: the operator states that it is gone for good. In one transaction its VMMs become failed, the sides of
 * their migrations with them, and what was held for VMMs that its answer was awaited for is released. A second time it
 * does nothing. Returns the instances whose records may need an update.
 */
export async function expungeSled(db: Database, sledId: string): Promise<string[]> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(
        sql`/* expunge-sled */ SELECT name FROM sled WHERE id = ${sledId} FOR UPDATE`,
      );
      if (found.rows.length === 0) throw Refusal.notFound('sled', sledId);
      const reason = `sled "${found.rows[0]?.name}" was expunged`;
      await transaction.execute(sql`/* expunge-sled */
        UPDATE sled SET policy = 'expunged', time_expunged = coalesce(time_expunged, now()), time_modified = now() WHERE id = ${sledId} AND policy <> 'expunged'`);
      return (await failSledVmms(transaction, { by: 'expunge-sled', sledId, reason })).instanceIds;
    }),
  );
}
