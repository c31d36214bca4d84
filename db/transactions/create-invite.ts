import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import type { Database } from '../connect.ts';

/** How long an invitation that has expired is kept, so that whoever uses it gets the reason for the refusal. */
const KEPT = '30 days';

/**
 * Writes down an invitation, good for `validSeconds` seconds, by the hash of its secret; forgets those that expired long
 * ago. Returns when it expires.
 */
export async function createInvite(
  db: Database,
  invite: { readonly sledName: string; readonly secretHash: string; readonly validSeconds: number },
): Promise<Date> {
  return db.transaction(async (transaction) => {
    await transaction.execute(
      sql`/* create-invite */ DELETE FROM sled_invite WHERE time_expires < now() - ${KEPT}::interval`,
    );
    const result = await transaction.execute(sql`/* create-invite */
    INSERT INTO sled_invite (id, sled_name, secret_hash, time_expires)
    VALUES (${randomUUID()}, ${invite.sledName}, ${invite.secretHash}, now() + make_interval(secs => ${invite.validSeconds}))
    RETURNING time_expires`);
    return new Date(String(result.rows[0]?.time_expires));
  });
}
