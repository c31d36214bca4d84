/** Who may run a guest that is handed over: every combination. */
import { describe, expect, test } from 'vitest';
import { ARRIVALS, readSourceStatus, SOURCE_STATUSES, settleArrival } from '../../model/hand-over.ts';
import { readSourceVerdict } from '../../sled-agent/qemu/source-verdict.ts';
import { type FoundVm, recoverVm } from '../../sled-agent/qemu/vm-recovery.ts';

/** QEMU's run states and migration statuses. Source: qapi/run-state.json and qapi/migration.json of QEMU 7.2. */
const RUN_STATES = [
  'debug',
  'inmigrate',
  'internal-error',
  'io-error',
  'paused',
  'postmigrate',
  'prelaunch',
  'finish-migrate',
  'restore-vm',
  'running',
  'save-vm',
  'shutdown',
  'suspended',
  'watchdog',
  'guest-panicked',
  'colo',
];
const MIGRATION_STATUSES = [
  'none',
  'setup',
  'cancelling',
  'cancelled',
  'active',
  'postcopy-active',
  'postcopy-paused',
  'postcopy-recover',
  'completed',
  'failed',
  'colo',
  'pre-switchover',
  'device',
  'wait-unplug',
];

describe('a destination', () => {
  const rows = {
    waiting: { kept: 'fail', given: 'wait', gone: 'wait', undecided: 'wait', unreachable: 'wait' },
    complete: { kept: 'fail', given: 'arrive', gone: 'arrive', undecided: 'wait', unreachable: 'wait' },
    failed: { kept: 'fail', given: 'fail', gone: 'fail', undecided: 'fail', unreachable: 'fail' },
  } as const;
  const cells = ARRIVALS.flatMap((arrival) =>
    SOURCE_STATUSES.map((sourceStatus) => [arrival, sourceStatus, rows[arrival][sourceStatus]] as const),
  );

  test.each(cells)('whose guest is %s, and whose source is %s: %s', (arrival, sourceStatus, wanted) => {
    expect(settleArrival(arrival, sourceStatus, false)).toBe(wanted);
    const lost = arrival === 'waiting' && sourceStatus === 'gone';
    expect(settleArrival(arrival, sourceStatus, true)).toBe(lost ? 'fail' : wanted);
  });

  test('starts its guest only when it has all of it, and nobody else can run it', () => {
    for (const arrival of ARRIVALS)
      for (const sourceStatus of SOURCE_STATUSES)
        for (const patienceOver of [false, true])
          if (settleArrival(arrival, sourceStatus, patienceOver) === 'arrive')
            expect([arrival, ['given', 'gone'].includes(sourceStatus)]).toEqual(['complete', true]);
  });
});

describe('a source', () => {
  test('has given its guest away only when QEMU says both that the migration completed and that it is over', () => {
    for (const runState of RUN_STATES)
      for (const status of MIGRATION_STATUSES)
        expect([runState, status, readSourceVerdict(runState, status) === 'given']).toEqual([
          runState,
          status,
          runState === 'postmigrate' && status === 'completed',
        ]);
  });

  test.each([
    ['running', 'none', 'kept'],
    ['paused', 'failed', 'kept'],
    ['paused', 'cancelled', 'kept'],
    ['postmigrate', 'failed', 'kept'],
    ['paused', 'active', 'under_way'],
    ['paused', 'cancelling', 'under_way'],
    ['finish-migrate', 'device', 'under_way'],
    ['finish-migrate', 'completed', 'under_way'],
    ['finish-migrate', 'failed', 'under_way'],
    ['finish-migrate', 'pre-switchover', 'under_way'],
    // The guest had once come by a migration, and none out of it has begun.
    ['paused', 'completed', 'kept'],
    ['running', 'completed', 'kept'],
    ['shutdown', 'completed', 'kept'],
  ])('in run state %s with migration %s: %s', (runState, status, verdict) => {
    expect(readSourceVerdict(runState, status)).toBe(verdict);
  });

  test('a status that a later QEMU adds is never taken for the end', () => {
    expect(readSourceVerdict('paused', 'something-new')).toBe('under_way');
  });

  const out = (state: string, migrationId = 'm') => ({ migrationId, state });
  test.each([
    ['it does not know the VMM', null, 'gone'],
    ['it let the guest go', { state: 'migrating', migrationOut: out('completed') }, 'given'],
    ['it let the guest go and ended', { state: 'destroyed', migrationOut: out('completed') }, 'given'],
    ['it kept the guest', { state: 'running', migrationOut: out('failed') }, 'kept'],
    ['it kept the guest, and died later', { state: 'failed', migrationOut: out('failed') }, 'kept'],
    ['it died in the middle', { state: 'failed', migrationOut: out('in_progress') }, 'gone'],
    ['it is under way', { state: 'migrating', migrationOut: out('in_progress') }, 'undecided'],
    ['it never began', { state: 'running', migrationOut: null }, 'kept'],
    ['it never began, and died', { state: 'failed', migrationOut: null }, 'gone'],
    ['it knows an earlier migration only', { state: 'running', migrationOut: out('failed', 'other') }, 'kept'],
  ] as const)('of which its agent answers that %s', (_, answer, sourceStatus) => {
    expect(readSourceStatus(answer, 'm')).toBe(sourceStatus);
  });
});

describe('a QEMU that a restarted agent finds', () => {
  const plain: FoundVm = {
    runState: 'running',
    migrationStatus: 'none',
    lastCommand: 'running',
    outgoing: false,
    incoming: 'none',
  };
  const out = { outgoing: true } as const;
  const into = { lastCommand: 'migration_target', incoming: 'source_known' } as const;
  test.each<[string, Partial<FoundVm>, ReturnType<typeof recoverVm>]>([
    ['never commanded', { runState: 'prelaunch', lastCommand: 'nothing' }, 'wait'],
    ['made for a migration, never commanded', { runState: 'inmigrate', lastCommand: 'nothing' }, 'wait'],
    ['commanded to run, and the agent ended before it did', { runState: 'prelaunch' }, 'run'],
    ['running', {}, 'runs'],
    ['standing still with its own guest', { runState: 'paused' }, 'resume'],
    ['powered off', { runState: 'shutdown' }, 'powered_off'],
    ['panicked', { runState: 'guest-panicked' }, 'panicked'],
    ['given up by QEMU', { runState: 'internal-error' }, 'fail'],
    ['with a guest that has left', { ...out, runState: 'postmigrate', migrationStatus: 'completed' }, 'gave'],
    ['with a guest that had left', { runState: 'postmigrate', migrationStatus: 'completed' }, 'gave'],
    ['in the middle of sending', { ...out, runState: 'paused', migrationStatus: 'active' }, 'cancel'],
    ['at the end of sending', { ...out, runState: 'finish-migrate', migrationStatus: 'device' }, 'cancel'],
    ['stopped before sending', { ...out, runState: 'paused' }, 'resume'],
    ['stopped before sending what once came', { ...out, runState: 'paused', migrationStatus: 'completed' }, 'resume'],
    ['failed in sending', { ...out, runState: 'paused', migrationStatus: 'failed' }, 'resume'],
    ['failed late in sending', { ...out, runState: 'postmigrate', migrationStatus: 'failed' }, 'resume'],
    ['resumed after a failure', { ...out, migrationStatus: 'failed' }, 'runs'],
    ['taking a guest in', { ...into, runState: 'inmigrate', migrationStatus: 'active' }, 'settle'],
    ['with a guest that has come', { ...into, runState: 'paused', migrationStatus: 'completed' }, 'settle'],
    ['with a guest that came and was started', { ...into, migrationStatus: 'completed' }, 'arrived'],
    ['that had not found its source', { ...into, runState: 'inmigrate', incoming: 'source_unknown' }, 'fail'],
  ])('%s', (_, found, step) => {
    expect(recoverVm({ ...plain, ...found })).toBe(step);
  });

  test('never lets a guest run that has left, or that has not come', () => {
    for (const runState of RUN_STATES)
      for (const migrationStatus of MIGRATION_STATUSES)
        for (const lastCommand of ['nothing', 'running', 'migration_target'] as const)
          for (const outgoing of [false, true])
            for (const incoming of ['none', 'source_known', 'source_unknown'] as const) {
              const step = recoverVm({ runState, migrationStatus, lastCommand, outgoing, incoming });
              if (!['run', 'resume'].includes(step)) continue;
              expect(incoming).toBe('none');
              if (runState === 'postmigrate') expect([outgoing, migrationStatus]).not.toContain('completed');
            }
  });
});
