/**
 * Memory of a worker over many sagas: instances are started and stopped again, in rounds, and the worker's resident
 * memory is read between the rounds, when nothing is open. Each round counts two sagas an instance that a caller asked
 * for (start, stop) and the update that follows.
 */
import { MooringClient } from '../client/mooring-client.ts';
import { waitUntil } from '../platform/host/child-process.ts';
import { CONTENDERS } from './contenders.ts';
import { inParallel, readMemory } from './measure/start.ts';
import type { Arena, Running } from './system/arena.ts';

const INSTANCES = 300;
const CONCURRENCY = 48;
/** Start, stop, update. */
const SAGAS_OF_A_TURN = 3;

export interface MemoryPoint {
  readonly sagas: number;
  readonly workerBytes: number;
  readonly apiBytes: number;
}

export interface MemoryResult {
  readonly sagas: number;
  readonly points: readonly MemoryPoint[];
  /** Calls that were answered with an error, after which the run went on: a stopped laptop, a full disk. */
  readonly failedCalls: number;
  /** Growth of the worker over the last half of the run, in bytes per 1,000 sagas: the slope of a fitted line. */
  readonly workerBytesPerThousand: number;
}

/** Runs at least `sagas` sagas through one worker, or as many as are over when `enough` is aborted. */
export async function measureMemory(
  arena: Arena,
  sagas: number,
  print: (line: string) => void,
  enough: AbortSignal,
): Promise<MemoryResult> {
  const contender = CONTENDERS.find(({ id }) => id === 'mooring');
  if (contender === undefined) throw new Error('there is no contender "mooring"');
  const running = await arena.start(contender, { instances: INSTANCES });
  try {
    const client = new MooringClient({ url: running.url });
    const instances = running.take(INSTANCES);
    const points: MemoryPoint[] = [];
    let failedCalls = 0;
    const bear = (call: Promise<unknown>) =>
      call.catch((error: unknown) => {
        failedCalls += 1;
        print(`a call failed: ${error instanceof Error ? error.message : error}`);
      });
    for (let done = 0; done < sagas && !enough.aborted; ) {
      await inParallel(instances, CONCURRENCY, (id) => bear(client.startInstance(id)));
      await inParallel(instances, CONCURRENCY, (id) => bear(client.stopInstance(id)));
      await allStopped(running);
      done += INSTANCES * SAGAS_OF_A_TURN;
      const memory = await readMemory(running);
      points.push({ sagas: done, workerBytes: memory.worker, apiBytes: memory.front });
      print(
        `memory: ${done} sagas, worker ${Math.round(memory.worker / 1e6)} MB, API ${Math.round(memory.front / 1e6)} MB`,
      );
    }
    return {
      sagas: points.at(-1)?.sagas ?? 0,
      points,
      failedCalls,
      workerBytesPerThousand: slope(points.slice(Math.floor(points.length / 2))),
    };
  } finally {
    await running.stop();
  }
}

async function allStopped(running: Running): Promise<void> {
  await waitUntil(
    async () => (await running.pool.query(`SELECT 1 FROM instance WHERE state <> 'no_vmm' LIMIT 1`)).rows.length === 0,
    'the instances did not stop',
    300_000,
    50,
  );
}

/** The slope of the least-squares line through the points, per 1,000 sagas. */
function slope(points: readonly MemoryPoint[]): number {
  const meanX = points.reduce((sum, { sagas }) => sum + sagas, 0) / points.length;
  const meanY = points.reduce((sum, { workerBytes }) => sum + workerBytes, 0) / points.length;
  const covariance = points.reduce((sum, p) => sum + (p.sagas - meanX) * (p.workerBytes - meanY), 0);
  const variance = points.reduce((sum, p) => sum + (p.sagas - meanX) ** 2, 0);
  return variance === 0 ? 0 : (covariance / variance) * 1_000;
}
