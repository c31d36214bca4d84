import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const transactionNumber = z
  .string()
  .regex(/^\d{1,20}$/)
  .refine((number) => BigInt(number) < 2n ** 64n);

/** Where a poller stands: opaque to it. */
export const networkCursor = z.object({
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

const pageRow = z.object({ xmin: transactionNumber, xmax: transactionNumber, entries: z.array(entry) });

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
 * that commits late is never missed, and one near the end may be read twice (its generation tells). A cursor from
 * another history of the database (a restored one) begins anew.
 */
export async function readNetworkChanges(
  db: Queryable,
  after: NetworkCursor | null,
  limit: number,
): Promise<NetworkChanges> {
  const at: NetworkCursor = after ?? { since: '0', initial: true, page: null };
  const result = await db.execute(sql`
    WITH page AS (
      SELECT * FROM instance_network
      WHERE changed_in >= ${at.since}::xid8 AND (vmm_id IS NOT NULL OR NOT ${at.initial})
        AND (${at.page === null} OR (changed_in, instance_id) > (${at.page?.changedIn ?? null}::xid8, ${at.page?.instanceId ?? null}::uuid))
      ORDER BY changed_in, instance_id LIMIT ${limit + 1}
    )
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS xmin, pg_snapshot_xmax(pg_current_snapshot())::text AS xmax,
      coalesce((SELECT jsonb_agg(jsonb_build_object('instance_id', instance_id, 'sled_id', sled_id, 'vmm_id', vmm_id, 'ip', ip,
        'port', port, 'generation', generation, 'changed_in', changed_in::text) ORDER BY changed_in, instance_id) FROM page),
        '[]'::jsonb) AS entries`);
  const { xmin, xmax, entries: found } = pageRow.parse(result.rows[0]);
  if (BigInt(at.since) > BigInt(xmax)) return readNetworkChanges(db, null, limit);
  const upTo = at.page?.upTo ?? xmin;
  const entries = found.slice(0, limit);
  const last = entries.at(-1);
  const more = found.length > limit && last !== undefined;
  return {
    entries,
    cursor: more
      ? { ...at, page: { changedIn: last.changed_in, instanceId: last.instance_id, upTo } }
      : { since: upTo, initial: false, page: null },
    more,
    reset: at.initial && at.page === null,
  };
}
