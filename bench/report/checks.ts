import type { MemoryResult } from '../memory.ts';
import type { Check, ContenderResult } from './results.ts';
import { median } from './statistics.ts';

/**
 * What each saga of Mooring's may cost, whatever the machine; test/performance/counts.test.ts holds it. Round trips are those
 * of the whole: the API's reads, the idempotency key and the sleds' reports included.
 */
export const COUNT_LIMITS = {
  start: { roundTrips: 10, events: 9, workflowTasks: 1 },
  'unwound start': { roundTrips: 20, events: 14, workflowTasks: 1 },
  'migration, until accepted': { roundTrips: 16, events: 11, workflowTasks: 1 },
  update: { roundTrips: 8, events: 7, workflowTasks: 1 },
} as const;

/** CPU that an engine and the processes around it use; PostgreSQL's and the sleds' is the same work for everyone. */
function engineCpu(result: ContenderResult | undefined): number {
  const saturated = mostThrough(result);
  if (saturated === undefined) return Number.NaN;
  const { front, worker, server } = saturated.cpuMsPerSaga;
  return front + worker + server;
}

function mostThrough(result: ContenderResult | undefined) {
  return [...(result?.levels ?? [])].sort((a, b) => b.perSecond.median - a.perSecond.median)[0];
}

/** How much more a worker holds in the last quarter of a run than in the second, when it was warm: 1 when it is flat. */
function memoryGrowth(memory: MemoryResult | null): number | undefined {
  if (memory === null) return undefined;
  const quarter = (from: number) =>
    median(
      memory.points
        .filter(({ sagas }) => sagas > from * memory.sagas && sagas <= (from + 0.25) * memory.sagas)
        .map(({ workerBytes }) => workerBytes),
    );
  return quarter(0.75) / quarter(0.25);
}

/** The targets, with what this run found. Those that it did not measure are left out. */
export function checkTargets(contenders: readonly ContenderResult[], memory: MemoryResult | null): Check[] {
  const by = (id: string) => contenders.find((contender) => contender.id === id);
  const mooring = by('mooring');
  const minimum = by('engine-minimum');
  const plain = by('plain-temporal');
  const checks: Check[] = [];
  const add = (
    name: string,
    value: number | null | undefined,
    must: Check['must'],
    limit: number,
    kind: Check['kind'],
  ) => {
    if (value != null && Number.isFinite(value)) checks.push({ name, value, limit, must, kind });
  };
  const latency = (one: ContenderResult | undefined) => one?.latency?.p50.median;
  const ratio = (a: number | undefined, b: number | undefined) =>
    a === undefined || b === undefined ? undefined : a / b;
  const through = (one: ContenderResult | undefined) => mostThrough(one)?.perSecond.median;

  for (const [saga, limits] of Object.entries(COUNT_LIMITS)) {
    const counts = mooring?.counts[saga];
    add(`round trips: ${saga}`, counts?.roundTrips.median, 'at most', limits.roundTrips, 'count');
    add(`history events: ${saga}`, counts?.historyEvents?.median, 'at most', limits.events, 'count');
    add(`workflow tasks: ${saga}`, counts?.workflowTasks?.median, 'at most', limits.workflowTasks, 'count');
  }
  const beside = (name: string, one: ContenderResult | undefined, other: ContenderResult | undefined) => {
    add(`latency, of ${name}`, ratio(latency(one), latency(other)), 'at most', 1.3, 'ratio');
    add(`throughput, of ${name}`, ratio(through(one), through(other)), 'at least', 0.9, 'ratio');
  };
  beside('the engine’s minimum', mooring, minimum);
  add('CPU per saga, of the engine’s minimum', engineCpu(mooring) / engineCpu(minimum), 'at most', 1.3, 'ratio');
  // Of a server elsewhere the CPU is not known.
  beside('the engine’s minimum at --temporal', by('mooring-external'), by('engine-minimum-external'));
  add('latency, of plain Temporal', ratio(latency(mooring), latency(plain)), 'at most', 0.6, 'ratio');
  add('throughput, of plain Temporal', ratio(through(mooring), through(plain)), 'at least', 1.5, 'ratio');
  add('memory of a worker, last quarter of the second', memoryGrowth(memory), 'at most', 1.1, 'ratio');
  for (const peer of ['dbos', 'restate']) {
    add(`latency, of ${peer}`, ratio(latency(mooring), latency(by(peer))), 'at most', 2, 'ratio');
    add(`throughput, of ${peer}`, ratio(through(mooring), through(by(peer))), 'at least', 0.5, 'ratio');
  }
  return checks;
}
