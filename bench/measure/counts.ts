/** What a saga costs whatever the machine: round trips, transactions, WAL, history. */
import { Client, Connection } from '@temporalio/client';
import type { Running } from '../system/arena.ts';

export interface SagaCounts {
  readonly roundTrips: number;
  readonly transactions: number;
  readonly walBytes: number;
  /** Of the saga's own workflow; `null` where there is none. */
  readonly historyEvents: number | null;
  readonly historyBytes: number | null;
}

/** How long the idle rate of a contender's own queries is watched, in milliseconds. */
const IDLE_MS = 1_000;

/**
 * Runs `act` (which does `sagas` sagas and waits until they have settled) and says what one of them costs. What the
 * contender does by itself in the same time is watched before, and taken off.
 */
export async function countPerSaga(
  running: Running,
  sagas: number,
  act: () => Promise<readonly string[]>,
): Promise<SagaCounts> {
  if (running.counts === null) throw new Error(`${running.contender.id} was not started for counting`);
  const read = async () => {
    const { rows } = await running.pool.query<{ lsn: string }>(
      "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS lsn",
    );
    return {
      time: performance.now(),
      wal: Number(rows[0]?.lsn),
      ...(running.counts?.() ?? { roundTrips: 0, transactions: 0 }),
    };
  };
  const first = await read();
  await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
  const before = await read();
  const workflowIds = await act();
  const after = await read();
  const busyShare = (after.time - before.time) / (before.time - first.time);
  const cost = (key: 'roundTrips' | 'transactions' | 'wal') =>
    Math.max(0, after[key] - before[key] - (before[key] - first[key]) * busyShare) / sagas;
  const history = await readHistories(running, workflowIds);
  return {
    roundTrips: cost('roundTrips'),
    transactions: cost('transactions'),
    walBytes: cost('wal'),
    historyEvents: history?.events ?? null,
    historyBytes: history?.bytes ?? null,
  };
}

/** The mean number of events and bytes of workflows' latest runs. */
async function readHistories(running: Running, workflowIds: readonly string[]) {
  if (workflowIds.length === 0 || running.temporalAddress === '') return null;
  const connection = await Connection.connect({ address: running.temporalAddress });
  try {
    const client = new Client({ connection });
    let events = 0;
    let bytes = 0;
    for (const workflowId of workflowIds) {
      const described = await client.workflow.getHandle(workflowId).describe();
      events += Number(described.historyLength);
      bytes += Number(described.historySize ?? 0);
    }
    return { events: events / workflowIds.length, bytes: bytes / workflowIds.length };
  } finally {
    await connection.close();
  }
}
