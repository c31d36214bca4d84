/** Draining a sled, through the API, on real migrations. */
import { WorkflowNotFoundError } from '@temporalio/client';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import type { SledDrainInput } from '../../model/workflow-inputs.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { type RunningCommand, startCommand } from '../support/command.ts';
import { type Harness, refused, startHarness, wake } from '../support/harness.ts';

let harness: Harness;
const commands: RunningCommand[] = [];
beforeAll(async () => {
  harness = await startHarness({ sleds: 3, registerTimeoutMs: 3_000 });
});
afterEach(async () => {
  harness.everywhere(wake);
  for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'provisionable');
  // Each test begins with empty sleds.
  const left: string[] = [];
  for await (const one of harness.client.listInstances()) if (one.run_state !== 'stopped') left.push(one.id);
  await Promise.all(left.map((id) => harness.client.stopInstance(id)));
  for (const id of left) await harness.shows(id, 'stopped');
});
afterAll(async () => {
  for (const command of commands) await command.stop('SIGKILL');
  await harness?.close();
});

/** Starts instances on one sled. */
async function fill(on: StackSled, howMany: number, values = {}): Promise<string[]> {
  for (const { id } of harness.stack.sleds)
    await harness.client.setSledPolicy(id, id === on.id ? 'provisionable' : 'non_provisionable');
  const ids = await Promise.all(Array.from({ length: howMany }, () => harness.running({ ncpus: 1, ...values })));
  for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'provisionable');
  return ids;
}

function sled(index: number): StackSled {
  const found = harness.stack.sleds[index];
  if (found === undefined) throw new Error(`there is no sled ${index}`);
  return found;
}

/** Begins a drain with limits of its own, as the API begins one with the defaults. */
async function drain(on: StackSled, limits: Partial<SledDrainInput> = {}) {
  return harness.temporal.workflow.start('sledDrain', {
    workflowId: workflowIds.drain(on.id),
    taskQueue: TASK_QUEUE,
    args: [{ sledId: on.id, parallel: 4, roundPauseMs: 50, ...limits }],
  });
}

test('a sled with 30 instances, one of which can not move: 29 are elsewhere, one is reported with the reason', async () => {
  const from = sled(0);
  const ids = await fill(from, 29);
  // More than any other sled has.
  await harness.client.setSledPolicy(sled(1).id, 'non_provisionable');
  await harness.client.setSledPolicy(sled(2).id, 'non_provisionable');
  const big = await harness.running({ ncpus: 30 });
  const blockers = [];
  for (const other of [sled(1), sled(2)]) blockers.push(...(await fill(other, 1, { ncpus: 40 })));

  const run = await drain(from);
  await waitUntil(async () => (await harness.client.getDrain(from.id)).total === 30, 'it never saw all of them');
  let most = 0;
  const done = await harness.client.waitForDrain(from.id, {
    onProgress: ({ moving }) => {
      most = Math.max(most, moving.length);
    },
  });
  expect(done).toMatchObject({ state: 'incomplete', total: 30, moved: 29, ended: 0, moving: [], waiting: [] });
  expect(most).toBeGreaterThan(0);
  expect(most).toBeLessThanOrEqual(4);
  expect(done.could_not_move).toEqual([
    { instance_id: big, name: expect.any(String), reason: expect.stringMatching(/no sled has room/) },
  ]);
  expect(done.summary).toMatch(/not drained: 29 of 30 moved, 1 could not move/);
  for (const id of ids) {
    const record = await harness.record(id);
    expect(record.externalState).toBe('running');
    expect(record.active?.sledId).not.toBe(from.id);
  }
  expect((await harness.record(big)).active?.sledId).toBe(from.id);
  expect((await harness.client.getSled(from.id)).provision_state).toBe('no_provision');
  expect((await run.describe()).status.name).toBe('COMPLETED');

  // With room, the next drain finishes it.
  await Promise.all(blockers.map((id) => harness.client.stopInstance(id)));
  for (const id of blockers) await harness.shows(id, 'stopped');
  await harness.client.drainSled(from.id);
  expect(await harness.client.waitForDrain(from.id)).toMatchObject({ state: 'drained', total: 1, moved: 1 });
});

test('what is starting is waited for; what is stopped, migrated or deleted meanwhile has left', async () => {
  const from = sled(0);
  const [stopping, migrating, deleting] = await fill(from, 3);
  for (const other of [sled(1), sled(2)]) await harness.client.setSledPolicy(other.id, 'non_provisionable');
  const starting = await harness.create();
  from.agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 1_500 }, times: 1 });
  const start = harness.client.startInstance(starting);
  await harness.shows(starting, 'starting');
  for (const other of [sled(1), sled(2)]) await harness.client.setSledPolicy(other.id, 'provisionable');
  // Held back, so that the users are first.
  for (const id of [stopping, migrating, deleting]) {
    if (id === migrating) await harness.client.migrateInstance(id ?? '', sled(1).id);
    else await harness.client.stopInstance(id ?? '');
  }
  await harness.client.drainSled(from.id, { parallel: 2 });
  await harness.shows(deleting ?? '', 'stopped');
  await harness.client.deleteInstance(deleting ?? '');
  await start;
  const done = await harness.client.waitForDrain(from.id);
  expect(done.state).toBe('drained');
  expect(done.could_not_move).toEqual([]);
  expect((await harness.record(starting)).active?.sledId).not.toBe(from.id);
  expect((await harness.shows(starting, 'running')).externalState).toBe('running');
  expect((await harness.record(migrating ?? '')).active?.sledId).toBe(sled(1).id);
});

test('a destination that refuses is not tried again while there is another; with none, the drain ends', async () => {
  const from = sled(0);
  const [id] = await fill(from, 1);
  sled(1).agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409, message: 'no' } });
  await drain(from);
  expect(await harness.client.waitForDrain(from.id)).toMatchObject({ state: 'drained', moved: 1 });
  expect((await harness.record(id ?? '')).active?.sledId).toBe(sled(2).id);

  // Back to where it was, and nobody takes it now.
  await harness.client.setSledPolicy(from.id, 'provisionable');
  await harness.client.migrateInstance(id ?? '', from.id);
  await waitUntil(async () => (await harness.record(id ?? '')).active?.sledId === from.id, 'it never came back');
  sled(2).agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409, message: 'no' } });
  await drain(from);
  const done = await harness.client.waitForDrain(from.id);
  expect(done).toMatchObject({ state: 'incomplete', moved: 0, total: 1 });
  expect(done.could_not_move[0]?.reason).toMatch(/migration failed and was undone.*refused/);
  expect((await harness.shows(id ?? '', 'running')).active?.sledId).toBe(from.id);
  const migrations = await runsOf(workflowIds.migrate(id ?? ''));
  // One that moved it, one that brought it back, and three rounds.
  expect(migrations).toBeLessThanOrEqual(6);
});

test('an instance that is waited for in vain is reported', async () => {
  const from = sled(0);
  const [id] = await fill(from, 1);
  from.agent.faults.holdReports(true);
  await harness.client.rebootInstance(id ?? '');
  await harness.shows(id ?? '', 'rebooting');
  from.agent.faults.plant({ call: 'list', act: { type: 'refuse', status: 503 } });
  await drain(from, { waitLimitMs: 300 });
  const done = await harness.client.waitForDrain(from.id);
  expect(done.could_not_move[0]?.reason).toMatch(/waited for in vain: it is rebooting/);
});

test('a big drain is continued as new, and forgets nothing', async () => {
  const from = sled(0);
  await fill(from, 7);
  const run = await drain(from, { instancesPerRun: 2, parallel: 2 });
  const done = await harness.client.waitForDrain(from.id);
  expect(done).toMatchObject({ state: 'drained', moved: 7, total: 7 });
  expect((await run.describe()).runId).not.toBe(run.firstExecutionRunId);
});

test('two who begin a drain join one; stopped, it moves nothing more, and the sled stays closed', async () => {
  const from = sled(0);
  const ids = await fill(from, 6);
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 1_000 } }));
  const [one, two] = await Promise.all([
    harness.client.drainSled(from.id, { parallel: 1 }),
    harness.client.drainSled(from.id, { parallel: 1 }),
  ]);
  expect(one.time_started).toBe(two.time_started);
  await waitUntil(async () => (await harness.client.getDrain(from.id)).moving.length > 0, 'it never began');
  await harness.client.stopDrain(from.id);
  const done = await harness.client.waitForDrain(from.id);
  expect(done.state).toBe('stopped');
  expect(done.summary).toMatch(/stopped \(by an operator\)/);
  harness.everywhere(wake);
  expect((await harness.client.getSled(from.id)).provision_state).toBe('no_provision');
  // What was on its way arrives all the same.
  for (const id of ids) await harness.shows(id, 'running');
  const here = (await Promise.all(ids.map((id) => harness.record(id)))).filter(
    ({ active }) => active?.sledId === from.id,
  );
  expect(here.length).toBeGreaterThanOrEqual(4);
  await harness.client.stopDrain(from.id);
});

test('a sled that is put into service again is drained no more', async () => {
  const from = sled(0);
  await fill(from, 4);
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 300 } }));
  await drain(from, { parallel: 1, instancesPerRun: 1 });
  await waitUntil(async () => (await harness.client.getDrain(from.id)).moved > 0, 'nothing ever moved');
  await harness.client.setSledPolicy(from.id, 'provisionable');
  const done = await harness.client.waitForDrain(from.id);
  expect(done.state).toBe('stopped');
  expect(done.summary).toMatch(/the sled is in_service now/);
  expect((await harness.client.getSled(from.id)).provision_state).toBe('in_service');
});

test('a drain of a sled that is unknown, expunged or was never drained', async () => {
  const unknown = '00000000-0000-4000-8000-00000000dead';
  expect((await refused(harness.client.drainSled(unknown))).status).toBe(404);
  expect((await refused(harness.client.getDrain(sled(2).id))).status).toBe(404);
  expect((await refused(harness.client.stopDrain(sled(2).id))).status).toBe(404);
  const gone = await harness.client.addSled({ name: 'gone', address: '127.0.0.1:9', threads: 1, memory: 2 ** 30 });
  await harness.client.expungeSled(gone.id);
  expect((await refused(harness.client.drainSled(gone.id))).status).toBe(409);
  const bad = await fetch(`${harness.stack.apiUrl}/v1/system/hardware/sleds/${sled(2).id}/drain`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"parallel": 0}',
  });
  expect(bad.status).toBe(400);
  expect(await bad.text()).toMatch(/parallel/);
});

test('a drain goes on when the worker that carried it is killed', async () => {
  const from = sled(0);
  const ids = await fill(from, 6);
  await harness.stack.worker.stop();
  const first = await startWorkerProcess();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 150 } }));
  await harness.client.drainSled(from.id);
  await waitUntil(
    async () => {
      const drain = await harness.client.getDrain(from.id);
      return drain.moved > 0 && drain.moved < ids.length;
    },
    'it never got under way',
    60_000,
  );
  await first.stop('SIGKILL');
  await startWorkerProcess();
  const done = await harness.client.waitForDrain(from.id);
  expect(done).toMatchObject({ state: 'drained', moved: 6, total: 6 });
  for (const id of ids) expect((await harness.shows(id, 'running')).active?.sledId).not.toBe(from.id);
});

async function startWorkerProcess(): Promise<RunningCommand> {
  const worker = startCommand(['worker'], {
    env: {
      DATABASE_URL: harness.stack.databaseUrl,
      TEMPORAL_ADDRESS: harness.stack.temporalAddress,
      MOORING_LOG_LEVEL: 'error',
    },
  });
  commands.push(worker);
  await worker.untilPrinted(/worker: running/);
  return worker;
}

async function runsOf(workflowId: string): Promise<number> {
  let runs = 0;
  try {
    for await (const run of harness.temporal.workflow.list({ query: `WorkflowId = "${workflowId}"` }))
      runs += run ? 1 : 0;
  } catch (error) {
    if (!(error instanceof WorkflowNotFoundError)) throw error;
  }
  return runs;
}
