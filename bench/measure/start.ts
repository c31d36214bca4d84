/** How long starts take, how many go through, and what they cost. */
import { MooringClient } from '../../client/mooring-client.ts';
import { type Role, type Running, settle } from '../system/arena.ts';
import { cpuMs, residentBytes } from '../system/usage.ts';

export const ROLES: readonly Role[] = ['front', 'worker', 'server', 'postgres', 'sleds'];

export interface LoadResult {
  readonly concurrency: number;
  readonly sagas: number;
  readonly perSecond: number;
  /** Milliseconds of each call. */
  readonly latenciesMs: readonly number[];
  /** CPU milliseconds per saga, until its VMM is reported as running. */
  readonly cpuMsPerSaga: Readonly<Record<Role, number>>;
}

/** CPU milliseconds used so far, by role. */
async function readCpu(running: Running): Promise<Record<Role, number>> {
  const used = { front: 0, worker: 0, server: 0, postgres: 0, sleds: 0 };
  for (const role of ROLES) for (const pid of running.pids[role]) used[role] += await cpuMs(pid);
  return used;
}

/** Resident bytes now, by role; PostgreSQL's, whose processes share most of theirs, are left out. */
export async function readMemory(running: Running): Promise<Record<Exclude<Role, 'postgres'>, number>> {
  const used = { front: 0, worker: 0, server: 0, sleds: 0 };
  for (const role of ['front', 'worker', 'server', 'sleds'] as const)
    for (const pid of running.pids[role]) used[role] += await residentBytes(pid);
  return used;
}

/** One start by the client library; what has no database only answers. */
export function starter(running: Running): (instanceId: string) => Promise<void> {
  if (!running.contender.hasDatabase) {
    return async (instanceId) => {
      const answer = await fetch(`${running.url}/v1/instances/${instanceId}/start`, { method: 'POST' });
      await answer.arrayBuffer();
      if (!answer.ok) throw new Error(`${running.contender.id} answered ${answer.status}`);
    };
  }
  const client = new MooringClient({ url: running.url });
  return async (instanceId) => {
    await client.startInstance(instanceId);
  };
}

/**
 * Runs `act` on every one of `items`, `concurrency` at a time; returns the milliseconds of each. `forMs`: begins no more
 * after that many milliseconds.
 */
export async function inParallel<Item>(
  items: readonly Item[],
  concurrency: number,
  act: (item: Item) => Promise<unknown>,
  forMs = Number.POSITIVE_INFINITY,
): Promise<number[]> {
  const latencies: number[] = [];
  const queue = items[Symbol.iterator]();
  const end = performance.now() + forMs;
  const work = async () => {
    for (let next = queue.next(); !next.done; next = queue.next()) {
      if (performance.now() > end) return;
      const began = performance.now();
      await act(next.value);
      latencies.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: Math.min(concurrency, items.length) }, work));
  return latencies;
}

/** How long a level may take in all, in milliseconds: a start that never ends must not cost the whole run. */
const END_MS = 180_000;

async function endsWithin<Result>(work: Promise<Result>, ms: number, message: string): Promise<Result> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(message)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Starts at most `most` instances, `concurrency` at a time; begins no more after `forMs` milliseconds. */
export async function load(running: Running, concurrency: number, most: number, forMs: number): Promise<LoadResult> {
  const start = starter(running);
  const instances = running.take(most);
  const before = await readCpu(running);
  const began = performance.now();
  const latenciesMs = await endsWithin(
    inParallel(instances, concurrency, start, forMs),
    END_MS,
    `${running.contender.id}: the starts that were begun, ${concurrency} at a time, have not all ended`,
  );
  const sagas = latenciesMs.length;
  const seconds = (performance.now() - began) / 1000;
  await settle(running);
  const after = await readCpu(running);
  const cpuMsPerSaga = { front: 0, worker: 0, server: 0, postgres: 0, sleds: 0 };
  for (const role of ROLES) cpuMsPerSaga[role] = (after[role] - before[role]) / sagas;
  return { concurrency, sagas, perSecond: sagas / seconds, latenciesMs, cpuMsPerSaga };
}
