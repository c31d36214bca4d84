/**
 * What a saga costs whatever the machine: round trips, transactions, WAL, history. Sagas are asked for one at a time, each on
 * a system where nothing else is under way, so that the counts are exact: every saga of a kind has the same.
 */
import { Client, Connection, WorkflowFailedError } from '@temporalio/client';
import { waitUntil } from '../../platform/host/child-process.ts';
import { median } from '../report/statistics.ts';
import type { Running } from '../system/arena.ts';
import { type PostgresProxy, shortStatement } from '../system/postgres-proxy.ts';

/** A count over several sagas. */
export interface Count {
  readonly median: number;
  readonly greatest: number;
}

export interface SagaCounts {
  readonly roundTrips: Count;
  /** The mean. */
  readonly transactions: number;
  /** The mean. */
  readonly walBytes: number;
  /** Of the saga's own workflow; `null` where there is none. */
  readonly historyEvents: Count | null;
  readonly workflowTasks: Count | null;
  /** The mean. */
  readonly historyBytes: number | null;
  /** What the round trips of a saga with the median count asked, by their tags, in order. */
  readonly statements: readonly string[];
}

/** How long a count must stay the same until nothing is under way any more, in milliseconds. */
const STILL_MS = 400;

/** Waits until a count stays the same. Throws when it never does. */
export async function standsStill(count: () => number): Promise<void> {
  let last = count();
  let since = performance.now();
  await waitUntil(
    () => {
      const now = count();
      if (now !== last) since = performance.now();
      last = now;
      return performance.now() - since >= STILL_MS;
    },
    'something goes on asking the database',
    60_000,
    20,
  );
}

/**
 * The statements of the round trips to PostgreSQL that `act` causes, in order. Nothing else may be under way: what is, is
 * waited for before. What `act` does not wait for itself counts when no longer than a moment passes between two round trips.
 */
export async function roundTripsOf(
  proxy: Pick<PostgresProxy, 'counts' | 'record'>,
  act: () => Promise<unknown>,
): Promise<readonly string[]> {
  const count = () => proxy.counts().roundTrips;
  await standsStill(count);
  const end = proxy.record();
  try {
    await act();
    await standsStill(count);
  } finally {
    end();
  }
  return end();
}

/** What a workflow's latest run has left on its server. */
export interface HistoryCounts {
  readonly events: number;
  readonly bytes: number;
  /** How often a task of the workflow was scheduled. */
  readonly workflowTasks: number;
  /** How many ordinary activities were scheduled: steps that were not settled within the workflow's task. */
  readonly activities: number;
  /** Workflow tasks that failed, or whose worker did not answer in time. */
  readonly lostTasks: number;
}

/** Waits until a workflow is over, however it ends, and reads what its latest run has left. Throws when there is none. */
export async function readHistory(client: Client, workflowId: string): Promise<HistoryCounts> {
  const handle = client.workflow.getHandle(workflowId);
  await handle.result().catch((error: unknown) => {
    if (!(error instanceof WorkflowFailedError)) throw error;
  });
  const { historySize } = await handle.describe();
  const { events } = await handle.fetchHistory();
  const all = events ?? [];
  return {
    events: all.length,
    bytes: Number(historySize ?? 0),
    workflowTasks: all.filter((event) => event.workflowTaskScheduledEventAttributes != null).length,
    activities: all.filter((event) => event.activityTaskScheduledEventAttributes != null).length,
    lostTasks: all.filter(
      (event) => event.workflowTaskTimedOutEventAttributes != null || event.workflowTaskFailedEventAttributes != null,
    ).length,
  };
}

/** A saga to be counted. */
export interface CountedSaga {
  /** Brings about what the saga begins with; not counted. */
  readonly prepare?: () => Promise<void>;
  /** Does the saga, and waits until it has come to rest. */
  readonly act: () => Promise<unknown>;
  /** Waits for what is not counted. */
  readonly after?: () => Promise<void>;
  /** Its own workflow; `null` where there is none. */
  readonly workflowId: string | null;
}

/** Counts sagas of one kind of a contender that was started for counting, one after another. Throws what one of them throws. */
export async function countSagas(running: Running, sagas: readonly CountedSaga[]): Promise<SagaCounts> {
  const { proxy } = running;
  if (proxy === null) throw new Error(`${running.contender.id} was not started for counting`);
  const readWal = async () => {
    const { rows } = await running.pool.query<{ lsn: string }>(
      "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn",
    );
    return Number(rows[0]?.lsn);
  };
  const asked: (readonly string[])[] = [];
  const histories: HistoryCounts[] = [];
  let transactions = 0;
  let walBytes = 0;
  const connection =
    running.temporalAddress === '' ? null : await Connection.connect({ address: running.temporalAddress });
  try {
    for (const saga of sagas) {
      await saga.prepare?.();
      await standsStill(() => proxy.counts().roundTrips);
      const wal = await readWal();
      const before = proxy.counts().transactions;
      asked.push(await roundTripsOf(proxy, saga.act));
      transactions += proxy.counts().transactions - before;
      walBytes += (await readWal()) - wal;
      await saga.after?.();
      if (saga.workflowId !== null && connection !== null)
        histories.push(await readHistory(new Client({ connection }), saga.workflowId));
    }
  } finally {
    await connection?.close();
  }
  const roundTrips = countOf(asked.map(({ length }) => length));
  return {
    roundTrips,
    transactions: transactions / sagas.length,
    walBytes: walBytes / sagas.length,
    historyEvents: histories.length === 0 ? null : countOf(histories.map(({ events }) => events)),
    workflowTasks: histories.length === 0 ? null : countOf(histories.map((history) => history.workflowTasks)),
    historyBytes:
      histories.length === 0 ? null : histories.reduce((sum, { bytes }) => sum + bytes, 0) / histories.length,
    statements: (asked.find(({ length }) => length >= roundTrips.median) ?? []).map(shortStatement),
  };
}

function countOf(values: readonly number[]): Count {
  return { median: median(values), greatest: Math.max(...values) };
}
