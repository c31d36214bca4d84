import { createHash } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { CHANGE_KINDS } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { forgetForeignChanges } from '../transactions/forget-foreign-changes.ts';

/** PostgreSQL's text of a snapshot: the oldest transaction that was open, the first that had not begun, and those open between. */
const SNAPSHOT = /^(\d{1,20}):(\d{1,20}):((?:\d{1,20}(?:,\d{1,20})*)?)$/;
/** Beyond this many open transactions a cursor names the oldest alone: what came after it is read twice, and none is missed. */
const MOST_OPEN = 40;
/** The most objects that one reading gives: who has missed more lists anew. */
export const MOST_CHANGES = 10_000;

/** Where a reader stands: it has read all that this snapshot of the database saw. */
export interface ChangeCursor {
  /** Stands for the run of transaction numbers that the snapshot's are of: in any other they mean nothing. */
  readonly history: string;
  readonly snapshot: string;
}

/** An object that changed. */
const change = z.object({
  kind: z.enum(CHANGE_KINDS),
  id: z.string(),
  /** `null`: it is the fleet's. */
  project_id: z.string().nullable(),
});
export type Change = z.infer<typeof change>;

/** Why a reader can't go on where it stands: what it has missed is forgotten, or its numbers are of another history. */
export type MissedChanges = 'too_old' | 'other_history';

export interface Changes {
  /** Each object once, those that changed last at the end; none where `missed` is set. */
  readonly changes: readonly Change[];
  /** Where the reader goes on. */
  readonly cursor: ChangeCursor;
  /** What came after the reader's cursor can't be read; `null`: it was. */
  readonly missed: MissedChanges | null;
}

const answer = z.object({
  snapshot: z.string(),
  history: z.string(),
  foreign: z.boolean(),
  forgotten_to: z.string(),
  changes: z.array(change),
});

/** Writes a cursor as readers keep it: of a few hundred characters at most, and of letters that a header may have. */
export function writeChangeCursor({ history, snapshot }: ChangeCursor): string {
  const [, oldest, , open = ''] = SNAPSHOT.exec(snapshot) ?? [];
  const short = open.split(',').length > MOST_OPEN ? `${oldest}:${oldest}:` : snapshot;
  return `${history}.${short}`;
}

/** Reads a cursor; `null` for what is none. */
export function readChangeCursor(text: string): ChangeCursor | null {
  const [, history, snapshot = ''] = /^([0-9a-f]{12})\.([0-9:,]{1,1000})$/.exec(text) ?? [];
  const [, oldest, next, open] = SNAPSHOT.exec(snapshot) ?? [];
  if (history === undefined || oldest === undefined || next === undefined || open === undefined) return null;
  const numbers = open === '' ? [] : open.split(',').map(BigInt);
  const isOrdered = [BigInt(oldest), ...numbers, BigInt(next)].every(
    (number, at, all) => number < 2n ** 63n && number >= (all[at - 1] ?? 0n),
  );
  return isOrdered ? { history, snapshot } : null;
}

/**
 * Reads what was committed after a cursor: nothing without one, but where the reader stands from now on. It goes by snapshots, so
 * that a change that commits late is not missed, and none is read twice. With `upTo`, a later cursor, only what that saw, and
 * `cursor` is that one. A log whose numbers are of another history of the database is emptied first.
 */
export async function readChanges(
  db: Queryable,
  after: ChangeCursor | null,
  upTo: ChangeCursor | null = null,
): Promise<Changes> {
  const [, , next = '0', open = ''] = SNAPSHOT.exec(after?.snapshot ?? '') ?? [];
  const result = await db.execute(sql`
    WITH new AS (
      SELECT kind, object_id, project_id, max(id) AS newest FROM change_log
      WHERE ${after !== null} AND (changed_in >= ${next}::xid8 OR changed_in = ANY(${`{${open}}`}::xid8[]))
        AND (${upTo === null} OR pg_visible_in_snapshot(changed_in, ${upTo?.snapshot ?? null}::pg_snapshot))
      GROUP BY kind, object_id, project_id ORDER BY newest DESC LIMIT ${MOST_CHANGES + 1}
    )
    SELECT pg_current_snapshot()::text AS snapshot, now.history, horizon.database_history <> now.history AS "foreign",
      horizon.forgotten_to::text AS forgotten_to,
      coalesce((SELECT jsonb_agg(jsonb_build_object('kind', kind, 'id', object_id, 'project_id', project_id) ORDER BY newest) FROM new),
        '[]'::jsonb) AS changes
    FROM change_horizon horizon, database_history() AS now (history)`);
  const read = answer.parse(result.rows[0]);
  if (read.foreign) {
    await forgetForeignChanges(db);
    return { ...(await readChanges(db, null)), missed: after === null ? null : 'other_history' };
  }
  const cursor = upTo ?? { history: nameOf(read.history), snapshot: read.snapshot };
  if (after === null) return { changes: [], cursor, missed: null };
  const [, , first = '0', stillOpen = ''] = SNAPSHOT.exec(read.snapshot) ?? [];
  const isForeign = after.history !== nameOf(read.history) || BigInt(next) > BigInt(first);
  // What is open still has nothing in the log that could be forgotten, however long it lasts.
  const ended = open.split(',').filter((number) => number !== '' && !stillOpen.split(',').includes(number));
  const isForgotten = [next, ...ended].some((number) => BigInt(number) <= BigInt(read.forgotten_to));
  if (isForeign || isForgotten || read.changes.length > MOST_CHANGES)
    return { changes: [], cursor, missed: isForeign ? 'other_history' : 'too_old' };
  return { changes: read.changes, cursor, missed: null };
}

/** A history in few letters, which tell nothing of the server. */
function nameOf(history: string): string {
  return createHash('sha256').update(history).digest('hex').slice(0, 12);
}
