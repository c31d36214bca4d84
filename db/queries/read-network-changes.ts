import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';
import { renumberNetwork } from '../transactions/renumber-network.ts';

const transactionNumber = z
  .string()
  .regex(/^\d{1,20}$/)
  .refine((number) => BigInt(number) < 2n ** 64n);

/** Where a poller stands: opaque to it. */
export const networkCursor = z.object({
  /** The run of transaction numbers that the cursor's are of: in any other they mean nothing. */
  history: z.string().max(200).optional(),
  /** Every change that a transaction below this number made has been read. */
  since: transactionNumber,
  /** Nothing had been read before this pass: it lists what lives, and no removals. */
  initial: z.boolean(),
  /** Within a pass of several pages: the last row read, and where the poller stands when the pass is through. */
  page: z.object({ changedIn: transactionNumber, instanceId: z.guid(), upTo: transactionNumber }).nullable(),
});

export type NetworkCursor = z.infer<typeof networkCursor>;

const entry = z.object({
  instance_id: z.string(),
  sled_id: z.string().nullable(),
  vmm_id: z.string().nullable(),
  ip: z.string().nullable(),
  port: z.number().nullable(),
  generation: z.number(),
  changed_in: transactionNumber,
});

export type NetworkEntry = z.infer<typeof entry>;

const pageRow = z.object({
  xmin: transactionNumber,
  xmax: transactionNumber,
  history: z.string(),
  /** The table's numbers are of another history, or some of them of a transaction that is still to come. */
  foreign: z.boolean(),
  forgotten_to: transactionNumber,
  entries: z.array(entry),
});

export interface NetworkChanges {
  readonly entries: readonly NetworkEntry[];
  /** Where the poller goes on. */
  readonly cursor: NetworkCursor;
  /** The pass has more pages: go on at once. */
  readonly more: boolean;
  /** This is the first page of a pass from nothing: what the pass does not list lives nowhere. */
  readonly reset: boolean;
}

/**
 * Reads at most `limit` changes after a cursor, oldest first; all that lives without one. It goes by the numbers of the
 * transactions that made the changes, and moves on only to the oldest one that was still open when it read: so a change
 * that commits late is never missed, and one near the end may be read twice (its generation tells).
 *
 * A cursor begins anew that may have missed something: one from another history of the database (a restored one, here or
 * elsewhere, or another server's), and one that has not read all that was forgotten since. A table whose numbers are of another
 * history is numbered anew first, or every poll would list it whole for as long as the numbers are ahead.
 */
export async function readNetworkChanges(
  db: Queryable,
  after: NetworkCursor | null,
  limit: number,
): Promise<NetworkChanges> {
  let page = await readPage(db, after ?? FROM_NOTHING, limit);
  if (page.foreign) {
    await renumberNetwork(db);
    after = null;
    page = await readPage(db, FROM_NOTHING, limit);
  }
  if (after !== null && mayHaveMissed(after, page)) return readNetworkChanges(db, null, limit);
  const { history, entries: found } = page;
  const at = after ?? FROM_NOTHING;
  const upTo = at.page?.upTo ?? page.xmin;
  const entries = found.slice(0, limit);
  const last = entries.at(-1);
  const more = found.length > limit && last !== undefined;
  return {
    entries,
    cursor: more
      ? { ...at, history, page: { changedIn: last.changed_in, instanceId: last.instance_id, upTo } }
      : { history, since: upTo, initial: false, page: null },
    more,
    reset: at.initial && at.page === null,
  };
}

const FROM_NOTHING: NetworkCursor = { since: '0', initial: true, page: null };

type Page = z.infer<typeof pageRow>;

/** Whether changes may be past that a cursor will never get. A list from nothing has no removals to miss. */
function mayHaveMissed(at: NetworkCursor, { history, xmax, forgotten_to }: Page): boolean {
  if ((at.history ?? '') !== history || BigInt(at.since) > BigInt(xmax)) return true;
  return !at.initial && BigInt(at.since) <= BigInt(forgotten_to);
}

async function readPage(db: Queryable, at: NetworkCursor, limit: number): Promise<Page> {
  const result = await db.execute(sql`
    WITH page AS (
      SELECT * FROM instance_network
      WHERE changed_in >= ${at.since}::xid8 AND (vmm_id IS NOT NULL OR NOT ${at.initial})
        AND (${at.page === null} OR (changed_in, instance_id) > (${at.page?.changedIn ?? null}::xid8, ${at.page?.instanceId ?? null}::uuid))
      ORDER BY changed_in, instance_id LIMIT ${limit + 1}
    )
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xmin, pg_snapshot_xmax(pg_current_snapshot())::text AS xmax, now.history, horizon.forgotten_to::text AS forgotten_to,
      horizon.database_history <> now.history
        OR EXISTS (SELECT 1 FROM instance_network WHERE changed_in >= pg_snapshot_xmax(pg_current_snapshot())) AS "foreign",
      coalesce((SELECT jsonb_agg(jsonb_build_object('instance_id', instance_id, 'sled_id', sled_id, 'vmm_id', vmm_id, 'ip', ip,
        'port', port, 'generation', generation, 'changed_in', changed_in::text) ORDER BY changed_in, instance_id) FROM page),
        '[]'::jsonb) AS entries
    FROM network_horizon horizon, database_history() AS now (history)`);
  return pageRow.parse(result.rows[0]);
}
