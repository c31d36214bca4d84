/** The sagas as workflows, over activities that only note what is asked of them: what runs when, and what runs anyway. */
import { randomUUID } from 'node:crypto';
import { Client, Connection, type WorkflowHandle } from '@temporalio/client';
import { ApplicationFailure } from '@temporalio/common';
import { NativeConnection, Worker } from '@temporalio/worker';
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from 'vitest';
import type { SagaActivities } from '../../activities/sagas.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { installRuntime } from '../../worker/worker.ts';
import { workflowBundle } from '../../worker/workflow-bundle.ts';
import { currentDetails } from '../support/details.ts';

const QUEUE = 'order-test';
type Fakes = { reap?: () => Promise<unknown> } & {
  [Name in keyof SagaActivities]?: (...args: Parameters<SagaActivities[Name]>) => Promise<unknown>;
};

const calls: { name: string; request: Record<string, unknown> }[] = [];
let fakes: Fakes = {};
let server: TemporalServer;
let connection: Connection;
let native: NativeConnection;
let client: Client;
let worker: Worker;
let running: Promise<void>;

const CLAIM = { vmmId: 'v', sledId: 's', sledName: 'sled-1', sledAddress: '10.0.0.1:1', sourceAddress: '10.0.0.2:1' };
const COMMANDED = { spared: false, commanded: true, sled: { name: 'sled-1', address: '10.0.0.1:1' } };
const USUAL: Record<string, unknown> = {
  claimStart: CLAIM,
  claimMigration: { outcome: 'claimed', claim: CLAIM },
  beginUnwind: COMMANDED,
  readMigrateInCommand: { sled: COMMANDED.sled, sourceAddress: CLAIM.sourceAddress, migrationId: 'm' },
  updateInstance: null,
};

beforeAll(async () => {
  installRuntime(createLog('test', 'silent'));
  server = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  connection = await Connection.connect({ address: server.address });
  native = await NativeConnection.connect({ address: server.address });
  client = new Client({ connection });
  const names = ['claimStart', 'claimMigration', 'registerVmm', 'runVmm', 'migrateIn', 'beginUnwind', 'unregisterVmm'];
  names.push('finishUnwind', 'signalUpdate', 'updateInstance', 'reap', 'readMigrateInCommand');
  const activities = Object.fromEntries(
    names.map((name) => [
      name,
      async (request: Record<string, unknown>) => {
        calls.push({ name, request });
        const fake = fakes[name as keyof Fakes] as ((request: unknown) => Promise<unknown>) | undefined;
        return fake === undefined ? USUAL[name] : fake(request);
      },
    ]),
  );
  // Every worker of ours can be asked; here nothing knows the attributes.
  activities.searchAttributesUsable = async () => false;
  worker = await Worker.create({
    connection: native,
    taskQueue: QUEUE,
    workflowBundle: await workflowBundle(),
    activities,
  });
  running = worker.run();
});
beforeEach(() => {
  calls.length = 0;
  fakes = {};
});
afterAll(async () => {
  worker?.shutdown();
  await running;
  await native?.close();
  await connection?.close();
  await server?.stop();
});

const begin = (type: 'instanceStart' | 'instanceMigrate' | 'instanceUpdate'): Promise<WorkflowHandle> =>
  client.workflow.start(type, {
    workflowId: randomUUID(),
    taskQueue: QUEUE,
    args: [{ instanceId: 'i', destinationSledId: 's', reason: 'user' }],
  });
test('what a workflow sets as its own details stays to the end; without it, its story stands there', async () => {
  fakes = { reap: async () => ({ summary: 'three rows deleted', found: {} }) };
  const pass = await client.workflow.start('reaper', { workflowId: randomUUID(), taskQueue: QUEUE, args: [] });
  await pass.result();
  expect(await currentDetails(pass)).toBe('three rows deleted');
  const start = await begin('instanceStart');
  await start.result();
  expect(await currentDetails(start)).toContain('claim a place');
});

const names = () => calls.map(({ name }) => name);
const refuse = (type: string) => async () => {
  throw ApplicationFailure.create({ type, message: type, nonRetryable: true });
};
const outcome = (handle: WorkflowHandle) =>
  handle.result().then(
    () => 'succeeded',
    () => 'failed',
  );
const UNWIND = ['beginUnwind', 'unregisterVmm', 'finishUnwind'];

test('a claim that was refused is not unwound; one whose outcome nobody knows is', async () => {
  fakes = { claimStart: refuse('Refusal') };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(names()).toEqual(['claimStart']);
  calls.length = 0;
  fakes = { claimStart: refuse('Mystery'), beginUnwind: async () => ({ ...COMMANDED, commanded: false, sled: null }) };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(names()).toEqual(['claimStart', 'beginUnwind', 'finishUnwind']);
});

test.each([
  ['instanceStart', 'registerVmm', ['claimStart', 'registerVmm']],
  ['instanceStart', 'runVmm', ['claimStart', 'registerVmm', 'runVmm']],
  ['instanceMigrate', 'registerVmm', ['claimMigration', 'registerVmm']],
  ['instanceMigrate', 'migrateIn', ['claimMigration', 'registerVmm', 'migrateIn']],
] as const)('%s whose %s is refused unwinds: mark, unregister, finish', async (type, step, before) => {
  fakes = { [step]: refuse('SledRefused') };
  expect(await outcome(await begin(type))).toBe('failed');
  expect(names()).toEqual([...before, ...UNWIND]);
  expect(calls.at(-1)?.request).toMatchObject({ confirmed: true, neverCommanded: false });
  // What the sled has reported as running, or migrating in, is not torn down.
  expect(calls.find(({ name }) => name === 'beginUnwind')?.request).toMatchObject({ spareRunning: true });
});

test('a start whose sled does not know the VMM unwinds it, whatever the row says', async () => {
  fakes = { runVmm: refuse('NoSuchVmm') };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(calls.find(({ name }) => name === 'beginUnwind')?.request).toMatchObject({ spareRunning: false });
});

test('a saga whose guest runs after all has succeeded, and undoes nothing', async () => {
  for (const type of ['instanceStart', 'instanceMigrate'] as const) {
    calls.length = 0;
    fakes = {
      runVmm: refuse('SledRefused'),
      migrateIn: refuse('SledRefused'),
      beginUnwind: async () => ({ ...COMMANDED, spared: true }),
    };
    expect(await outcome(await begin(type))).toBe('succeeded');
    expect(names().at(-1)).toBe('beginUnwind');
  }
});

test('a VMM that was commanded is unregistered until the sled has answered; one that was not is soon given up', async () => {
  let left = 8;
  const silent = async () => {
    left -= 1;
    if (left > 0) throw new Error('no answer');
  };
  fakes = { runVmm: refuse('SledRefused'), unregisterVmm: silent };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(left).toBe(0);
  expect(calls.at(-1)).toMatchObject({ name: 'finishUnwind', request: { confirmed: true } });

  calls.length = 0;
  fakes = {
    registerVmm: refuse('SledRefused'),
    beginUnwind: async () => ({ ...COMMANDED, commanded: false }),
    unregisterVmm: async () => {
      throw new Error('no answer');
    },
  };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(calls.at(-1)).toMatchObject({ name: 'finishUnwind', request: { confirmed: false, neverCommanded: true } });
});

/** Holds an activity until it is let go, at the latest when the test is over: the worker waits for it. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  onTestFinished(open);
  return { open, pass: () => opened };
}

test('a cancelled start unwinds to its end', async () => {
  const held = gate();
  fakes = { registerVmm: held.pass };
  const handle = await begin('instanceStart');
  // A workflow learns of its cancellation when its task is over: the step at once is given up first, and tried again.
  await waitUntil(() => names().filter((name) => name === 'registerVmm').length === 2, 'it never registered');
  await handle.cancel();
  expect(await outcome(handle)).toBe('failed');
  expect(names()).toEqual(['claimStart', 'registerVmm', 'registerVmm', ...UNWIND]);
});

test('a cancellation past the point of no return does not tear a migration down', async () => {
  const held = gate();
  fakes = { migrateIn: held.pass };
  const handle = await begin('instanceMigrate');
  await waitUntil(() => names().includes('migrateIn'), 'it was never commanded');
  await handle.cancel();
  held.open();
  expect(await outcome(handle)).toBe('succeeded');
  expect(names()).not.toContain('beginUnwind');
  // The workflow task was done again from its beginning, cancelled, and found that the destination had been commanded.
  expect(names().slice(-2)).toEqual(['readMigrateInCommand', 'migrateIn']);
  expect(new Set(calls.filter(({ name }) => name === 'migrateIn').map(({ request }) => request.vmmId)).size).toBe(1);
});

test('a cancellation that arrives while the destination is being commanded waits for its answer', async () => {
  const held = gate();
  fakes = { migrateIn: held.pass };
  const handle = await begin('instanceMigrate');
  await waitUntil(() => names().filter((name) => name === 'migrateIn').length === 2, 'it was never an activity');
  await handle.cancel();
  await waitUntil(async () => {
    const { events = [] } = await handle.fetchHistory();
    const asked = events?.findIndex((event) => event.workflowExecutionCancelRequestedEventAttributes != null) ?? -1;
    return asked >= 0 && (events?.slice(asked).some((event) => event.workflowTaskCompletedEventAttributes) ?? false);
  }, 'the cancellation never arrived');
  held.open();
  expect(await outcome(handle)).toBe('succeeded');
  expect(names()).toEqual(['claimMigration', 'registerVmm', 'migrateIn', 'migrateIn']);
});

test('a migration that fails after an earlier run has had its destination commanded is carried forward', async () => {
  const FORWARD = { ...COMMANDED, forward: true };
  fakes = { registerVmm: refuse('Mystery'), beginUnwind: async () => FORWARD };
  expect(await outcome(await begin('instanceMigrate'))).toBe('succeeded');
  expect(names().slice(2)).toEqual(['beginUnwind', 'readMigrateInCommand', 'migrateIn']);
  // What the destination refuses is unwound.
  calls.length = 0;
  fakes = {
    ...fakes,
    migrateIn: refuse('SledRefused'),
    beginUnwind: async ({ refused }: { refused?: boolean }) => (refused ? COMMANDED : FORWARD),
  };
  expect(await outcome(await begin('instanceMigrate'))).toBe('failed');
  expect(names().slice(2)).toEqual(['beginUnwind', 'readMigrateInCommand', 'migrateIn', ...UNWIND]);
});

test('an attempt that was unwound to its end waits for no sled again', async () => {
  fakes = { runVmm: refuse('VmmLost'), beginUnwind: async () => ({ ...COMMANDED, ended: true }) };
  expect(await outcome(await begin('instanceStart'))).toBe('failed');
  expect(names().slice(-2)).toEqual(['beginUnwind', 'finishUnwind']);
  expect(calls.at(-1)?.request).toMatchObject({ confirmed: false });
});

test('a cancelled migration whose destination was never commanded unwinds', async () => {
  const held = gate();
  fakes = { registerVmm: held.pass, readMigrateInCommand: async () => null };
  const handle = await begin('instanceMigrate');
  await waitUntil(() => names().filter((name) => name === 'registerVmm').length === 2, 'it never registered');
  await handle.cancel();
  expect(await outcome(handle)).toBe('failed');
  expect(names().slice(3)).toEqual(['readMigrateInCommand', ...UNWIND]);
});

test('an update does not complete over a signal that came while it looked', async () => {
  const held = gate();
  fakes = { updateInstance: held.pass };
  const handle = await begin('instanceUpdate');
  await waitUntil(() => names().includes('updateInstance'), 'it never looked');
  await handle.signal('updateNeeded');
  // Delivered before the activity has ended.
  await waitUntil(async () => {
    const { events } = await handle.fetchHistory();
    return events?.some((event) => event.workflowExecutionSignaledEventAttributes != null) ?? false;
  }, 'the signal never arrived');
  held.open();
  expect(await handle.result()).toMatchObject({ rounds: 2 });
});
