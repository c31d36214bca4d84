/** The soak's own checks can fail: each is shown a history that is wrong, and one that is right. */
import { describe, expect, test } from 'vitest';
import { checkHistory, type FinalOperation, type History, type HistoryEntry } from './history.ts';
import { findDoubleRuns, findHalts } from './witness.ts';

const call = (entry: Partial<HistoryEntry> & Pick<HistoryEntry, 'kind' | 'sentMs' | 'status'>): HistoryEntry => ({
  instanceId: 'i',
  endedMs: entry.sentMs + 10,
  ...entry,
});
const started = call({ kind: 'start', sentMs: 100, status: 202, operationId: 'o' });
const operation: FinalOperation = {
  operationId: 'o',
  instanceId: 'i',
  state: 'done',
  outcome: 'succeeded',
  endedMs: 105,
};
const created = call({ kind: 'create', sentMs: 0, status: 201 });
const shows = (runState: 'running' | 'stopped' | 'failed', ncpus = 2) => [
  { instanceId: 'i', view: { runState, ncpus, memoryBytes: 1024 } },
];
const history = (given: Partial<History>): History => ({
  calls: [],
  operations: [],
  instances: [],
  disturbed: [],
  halted: [],
  ...given,
});
const rules = (given: Partial<History>) => checkHistory(history(given)).map((violation) => violation.rule);

describe('the history check', () => {
  test('a 500, and a status that the call never has, are violations; 503, 507 and no answer are not', () => {
    expect(rules({ calls: [call({ kind: 'read', sentMs: 0, status: 500 })] })).toHaveLength(1);
    expect(rules({ calls: [call({ kind: 'stop', sentMs: 0, status: 400 })] })).toHaveLength(1);
    for (const status of [503, 507, null])
      expect(rules({ calls: [call({ kind: 'start', sentMs: 0, status })] })).toEqual([]);
  });
  test('an operation that never ends, or can’t be found, is a violation', () => {
    expect(rules({ operations: [{ ...operation, state: 'running', outcome: null, endedMs: null }] })).toHaveLength(1);
    expect(rules({ operations: [{ ...operation, state: null, outcome: null, endedMs: null }] })).toHaveLength(1);
    expect(rules({ operations: [operation] })).toEqual([]);
  });
  test('a deleted instance stays 404', () => {
    const deleted = call({ kind: 'delete', sentMs: 100, status: 204 });
    const gone = [{ instanceId: 'i', view: null }];
    expect(
      rules({ calls: [created, deleted, call({ kind: 'read', sentMs: 200, status: 404 })], instances: gone }),
    ).toEqual([]);
    expect(
      rules({ calls: [created, deleted, call({ kind: 'read', sentMs: 200, status: 200 })], instances: gone }),
    ).toHaveLength(1);
    expect(rules({ calls: [created, deleted], instances: shows('stopped') })).toHaveLength(1);
  });
  test('an instance that nobody deleted is found', () => {
    expect(rules({ calls: [created], instances: [{ instanceId: 'i', view: null }] })).toHaveLength(1);
    expect(
      rules({ calls: [created, call({ kind: 'read', sentMs: 50, status: 404 })], instances: shows('stopped') }),
    ).toHaveLength(1);
    for (const status of [null, 503]) {
      const perhaps = call({ kind: 'delete', sentMs: 100, status });
      expect(rules({ calls: [created, perhaps], instances: [{ instanceId: 'i', view: null }] })).toEqual([]);
    }
  });
  test('a resize that succeeded is seen, unless another one came after it or at the same time', () => {
    const resize = (sentMs: number, ncpus: number, status: number | null) =>
      call({ kind: 'resize', sentMs, status, size: { ncpus, memoryBytes: 1024 } });
    expect(rules({ calls: [resize(10, 4, 200)], instances: shows('stopped', 2) })).toHaveLength(1);
    expect(rules({ calls: [resize(10, 4, 200)], instances: shows('stopped', 4) })).toEqual([]);
    expect(rules({ calls: [resize(10, 4, 200), resize(50, 2, null)], instances: shows('stopped', 2) })).toEqual([]);
    expect(rules({ calls: [resize(10, 4, 200), resize(50, 2, 409)], instances: shows('stopped', 2) })).toHaveLength(1);
  });
  test('a stop with no start after it ends Stopped', () => {
    const stop = call({ kind: 'stop', sentMs: 2_000, status: 202 });
    const calls = [created, started, stop];
    for (const externalState of ['running', 'failed'] as const)
      expect(rules({ calls, operations: [operation], instances: shows(externalState) })).toHaveLength(1);
    expect(rules({ calls, operations: [operation], instances: shows('stopped') })).toEqual([]);
    const again = call({ kind: 'start', sentMs: 2_005, status: null });
    expect(rules({ calls: [...calls, again], operations: [operation], instances: shows('running') })).toEqual([]);
  });
  test('a start that succeeded, with nothing since, ends Running', () => {
    const given = { calls: [created, started], operations: [operation], instances: shows('stopped') };
    expect(rules(given)).toHaveLength(1);
    expect(rules({ ...given, instances: shows('running') })).toEqual([]);
    expect(rules({ ...given, disturbed: [{ instanceId: 'i', atMs: 200 }] })).toEqual([]);
    expect(rules({ ...given, calls: [created, started, call({ kind: 'stop', sentMs: 105, status: null })] })).toEqual(
      [],
    );
  });
});

describe('the history check, of what happens without a user', () => {
  const failed = { calls: [created, started], operations: [operation], instances: shows('failed') };
  const crash = { instanceId: 'i', atMs: 200 };

  test('a stop by force ends Stopped as a stop does', () => {
    const forced = call({ kind: 'force-stop', sentMs: 2_000, status: 202 });
    const given = { ...failed, calls: [...failed.calls, forced] };
    expect(rules(given)).toHaveLength(1);
    expect(rules({ ...given, instances: shows('stopped') })).toEqual([]);
  });
  test('what is started again by itself runs in the end, whatever befell it; the rest need not', () => {
    const restarting = { ...created, restarts: true };
    expect(rules({ ...failed, disturbed: [crash] })).toEqual([]);
    expect(rules({ ...failed, calls: [restarting, started], disturbed: [crash] })).toHaveLength(1);
    expect(rules({ ...failed, calls: [restarting, started], disturbed: [crash], instances: shows('running') })).toEqual(
      [],
    );
    // A start of its user that failed leaves it as it is.
    const again = call({ kind: 'start', sentMs: 300, status: 503, message: 'it failed and was undone' });
    expect(rules({ ...failed, calls: [restarting, started, again], disturbed: [crash] })).toEqual([]);
    const halt = { disturbed: [crash], halted: [crash] };
    expect(rules({ ...failed, calls: [restarting, started], instances: shows('stopped'), ...halt })).toEqual([]);
  });
  test('a guest that powered itself off ends Stopped, unless something befell it before that was known', () => {
    const halt = { instanceId: 'i', atMs: 200 };
    const given = { ...failed, disturbed: [halt], halted: [halt] };
    expect(rules(given)).toHaveLength(1);
    expect(rules({ ...given, instances: shows('running') })).toHaveLength(1);
    expect(rules({ ...given, instances: shows('stopped') })).toEqual([]);
    expect(rules({ ...given, disturbed: [halt, { instanceId: 'i', atMs: 250 }] })).toEqual([]);
    const again = call({ kind: 'start', sentMs: 300, status: null });
    expect(rules({ ...given, calls: [created, started, again], instances: shows('running') })).toEqual([]);
  });
});

describe('the guests’ witness', () => {
  const entry = (vmm_id: string, event: 'began' | 'ceased', second: number) =>
    JSON.stringify({
      instance_id: 'i',
      vmm_id,
      event,
      reason: event === 'ceased' && vmm_id === 'halts' ? 'the guest halted' : '',
      // The wall clock of an agent may say anything.
      time: new Date(0).toISOString(),
      monotonic_ms: second * 1000,
    });
  const life = (sled: string, lines: string[], killedAtMs: number | null = null) => ({
    sled,
    log: lines.map((line) => `${line}\n`).join(''),
    killedAtMs,
  });

  const found = (...lives: ReturnType<typeof life>[]) => findDoubleRuns(lives);
  const elsewhere = life('2', [entry('b', 'began', 3)]);

  test('a guest that begins elsewhere before it ceased is found, and none that begins after', () => {
    expect(found(life('1', [entry('a', 'began', 1), entry('a', 'ceased', 3)]), elsewhere)).toEqual([]);
    expect(found(life('1', [entry('a', 'began', 1), entry('a', 'ceased', 4)]), elsewhere)).toHaveLength(1);
    expect(found(life('1', [entry('a', 'began', 1)]), elsewhere)).toHaveLength(1);
  });
  test('a guest ends with the process that ran it, and a torn last line is no entry', () => {
    const killed = life('1', [entry('a', 'began', 1)], 2_500);
    expect(found({ ...killed, log: `${killed.log}{"instance_id":` }, elsewhere)).toEqual([]);
    expect(found({ ...killed, killedAtMs: 3_500 }, elsewhere)).toHaveLength(1);
  });
  test('its end is when its process was killed, not when its watchdog wrote it down, after a torn line or none', () => {
    const torn = `{"instance_id":"i","vmm`;
    for (const lines of [[], [torn]]) {
      const told = life('1', [entry('a', 'began', 1), ...lines, '', entry('a', 'ceased', 4)], 2_500);
      expect(found(told, elsewhere)).toEqual([]);
      expect(found({ ...told, killedAtMs: 3_500 }, elsewhere)).toHaveLength(1);
    }
    expect(() => found(life('1', [torn, entry('a', 'began', 1)]))).toThrow(/no entry/);
  });
  test('a guest that powered itself off is told from one that was stopped', () => {
    const lives = [
      life('1', [entry('halts', 'began', 1), entry('halts', 'ceased', 3)]),
      life('2', [entry('a', 'began', 4), entry('a', 'ceased', 5)]),
    ];
    expect(findHalts(lives)).toEqual([{ instanceId: 'i', atMs: 3_000 }]);
  });
});
