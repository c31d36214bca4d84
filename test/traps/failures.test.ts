/** Traps known from the field, on real parts: failures, leftovers and silence. Each test names the trap and where it was met. */
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { CallFault } from '../../sled-agent/faults.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  // No schedules: what heals is asked for. A sled holds 64 threads.
  harness = await startHarness({ sleds: 2, reconcileEveryMs: 0, registerTimeoutMs: 1_500 });
});
afterEach(() => harness.everywhere(({ agent }) => agent.faults.clear()));
afterAll(() => harness?.close());

type Act = CallFault['act'];
const refuse = (status: number, error_code?: string): Act => ({
  type: 'refuse',
  status,
  ...(error_code === undefined ? {} : { error_code }),
});

describe('a leaked reservation makes every later start fail (nova bug 1829479, Omicron issue 10712)', () => {
  const failures: [string, CallFault[]][] = [
    ['register is refused', [{ call: 'register', act: refuse(409) }]],
    ['register is never answered', [{ call: 'register', act: { type: 'drop_after' } }]],
    ['running is refused', [{ call: 'state:running', act: refuse(409) }]],
  ];
  test.each(failures)('%s, again and again, on an instance that fills its sled: it still starts', async (_, faults) => {
    const id = await harness.create(undefined, { ncpus: 64 });
    for (let round = 0; round < 4; round++) {
      for (const fault of faults) harness.everywhere(({ agent }) => agent.faults.plant(fault));
      expect((await refused(harness.client.startInstance(id))).status).toBe(503);
      harness.everywhere(({ agent }) => agent.faults.clear());
    }
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    await harness.examined(true);
  });

  test('what a silent sled may still hold is given back when it answers again', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => {
      agent.faults.plant({ call: 'register', act: { type: 'drop_after' } });
      agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
    });
    expect((await refused(harness.client.startInstance(id))).status).toBe(503);
    expect(await harness.holds(id)).toEqual({ reservations: ['tombstoned'], charge: false });
    await harness.reconcile();
    expect(await harness.holds(id)).toEqual({ reservations: ['tombstoned'], charge: false });
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.reconcile();
    await harness.rests(id);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
    await harness.examined(true);
  });
});

describe('a watcher that calls a VMM lost because a call failed (KubeVirt issues 10146 and 18763)', () => {
  const answers: [string, Act][] = [
    ['no answer', { type: 'drop_before' }],
    ['an answer that comes too late', { type: 'delay', ms: 3_500 }],
    ['503: the agent has just started and knows nothing yet', refuse(503)],
    ['404 without the code that means "gone"', refuse(404)],
    ['404 with another code', refuse(404, 'NOT_FOUND')],
    ['410: on its way down', refuse(410)],
    ['403', refuse(403)],
    ['nonsense', { type: 'garbage' }],
  ];
  test.each(answers)('%s is no verdict', async (_, act) => {
    const id = await harness.running();
    for (const call of ['list', 'get'] as const)
      harness.everywhere(({ agent }) => agent.faults.plant({ call, act, times: 2 }));
    await harness.reconcile();
    const { externalState, active } = await harness.record(id);
    expect([externalState, active?.state]).toEqual(['running', 'running']);
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });

  test('the one answer that means "gone" is one', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    here.agent.faults.lose((await harness.record(id)).active?.id ?? '');
    await harness.reconcile();
    await harness.shows(id, 'failed');
    await harness.rests(id);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  });
});

describe('an undo that fails and leaves the rest undone (Omicron issue 10166, "stuck" sagas of issue 5947)', () => {
  const answers: [string, Act][] = [
    ['refused', refuse(409)],
    ['answered with an internal error', refuse(500)],
    ['cut off before it is done', { type: 'drop_before' }],
    ['cut off after it was done', { type: 'drop_after' }],
    ['answered with nonsense', { type: 'garbage' }],
  ];
  test.each(answers)(
    'unregistering a guest that was commanded to run is %s three times: it is done all the same',
    async (_, act) => {
      const id = await harness.create();
      harness.everywhere(({ agent }) => {
        agent.faults.plant({ call: 'state:running', act: refuse(409), times: 1 });
        agent.faults.plant({ call: 'unregister', act, times: 3 });
      });
      expect((await refused(harness.client.startInstance(id))).status).toBe(503);
      expect((await harness.record(id)).externalState).toBe('stopped');
      expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
      harness.everywhere(({ agent }) => agent.faults.clear());
      await harness.rests(id);
      await harness.examined(true);
    },
  );
});

describe('a stuck lock: whoever held the instance is gone (Omicron issues 10166 and 10801, LXD "busy running an operation")', () => {
  /** As if the operation had begun earlier: the scan need not wait. */
  const age = (id: string) =>
    harness.database.db.execute(
      sql`UPDATE operation SET time_started = time_started - interval '1 minute' WHERE instance_id = ${id} AND time_ended IS NULL`,
    );

  test('a start that was terminated in the middle', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));
    const call = refused(harness.client.startInstance(id));
    await waitUntil(async () => (await harness.record(id)).active?.commandedAt != null, 'its sled was never commanded');
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).terminate('the test');
    expect((await call).status).toBe(409);
    harness.everywhere(({ agent }) => agent.faults.clear());
    await age(id);
    await harness.reconcile();
    await harness.shows(id, 'stopped');
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
  });

  test('an update that was terminated', async () => {
    const id = await harness.create();
    await harness.stack.worker.setUpdates(false);
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: refuse(409), times: 1 }));
    await refused(harness.client.startInstance(id));
    // The caller is answered when the unwind is committed; the update is begun after that.
    const update = harness.temporal.workflow.getHandle(workflowIds.update(id));
    await waitUntil(async () => (await update.describe().catch(() => null)) !== null, 'the update was never begun');
    await update.terminate('the test');
    await harness.stack.worker.setUpdates(true);
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.reconcile();
    await harness.rests(id);
    expect((await harness.record(id)).instance).toMatchObject({ state: 'no_vmm', activeVmmId: null });
  });

  test('a stop that was terminated before its sled was commanded', async () => {
    const id = await harness.running();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' } }));
    await harness.client.stopInstance(id);
    await harness.temporal.workflow.getHandle(workflowIds.stop(id)).terminate('the test');
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.reconcile();
    await harness.shows(id, 'stopped');
    await harness.rests(id);
  });
});

describe('a deleted instance whose update never ends (Omicron issue 10784)', () => {
  test('it is destroyed, its update completes, and one more signal changes nothing', async () => {
    await harness.stack.worker.setUpdates(false);
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: refuse(409), times: 1 }));
    await refused(harness.client.startInstance(id));
    await harness.client.deleteInstance(id);
    await harness.stack.worker.setUpdates(true);
    const update = harness.temporal.workflow.getHandle(workflowIds.update(id));
    await update.result();
    expect((await harness.record(id)).instance).toMatchObject({ state: 'destroyed', activeVmmId: null });
    await harness.temporal.workflow.signalWithStart('instanceUpdate', {
      workflowId: workflowIds.update(id),
      taskQueue: 'mooring-update',
      args: [{ instanceId: id }],
      signal: 'updateNeeded',
    });
    await harness.temporal.workflow.getHandle(workflowIds.update(id)).result();
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.rests(id);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  });
});

test('a stop of an instance that is stopping already answers with an error (Omicron issue 6819): it is a no-op', async () => {
  const id = await harness.running();
  const answers = await Promise.all([1, 2, 3].map(() => harness.client.stopInstance(id)));
  expect(answers).toHaveLength(3);
  await harness.shows(id, 'stopped');
  expect((await harness.client.stopInstance(id)).run_state).toBe('stopped');
});

test('a stop that races a sled that lost the VMM ends Failed and is restarted (Omicron issue 6809): it ends Stopped', async () => {
  const id = await harness.running();
  const { here } = await harness.placed(id);
  const vmmId = (await harness.record(id)).active?.id ?? '';
  here.agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' }, times: 2 });
  here.agent.faults.lose(vmmId);
  await harness.client.stopInstance(id);
  await harness.reconcile();
  await harness.shows(id, 'stopped');
  await harness.reconcile();
  expect((await harness.record(id)).instance).toMatchObject({ state: 'no_vmm', intendedState: 'stopped' });
});

test('a Failed instance that can be neither stopped nor started (Omicron issue 2825): it can be both', async () => {
  const id = await harness.running();
  for (const next of ['start', 'stop'] as const) {
    const { here } = await harness.placed(id);
    here.agent.faults.crash((await harness.record(id)).active?.id ?? '');
    await harness.shows(id, 'failed');
    if (next === 'start') {
      await harness.client.startInstance(id);
      await harness.shows(id, 'running');
    } else expect((await harness.client.stopInstance(id)).run_state).toBe('stopped');
  }
});

test('a command of an earlier attempt that arrives late destroys what runs now (Omicron, TODO in instance_migrate.rs)', async () => {
  const id = await harness.running();
  const { here } = await harness.placed(id);
  const before = (await harness.record(id)).active;
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.client.startInstance(id);
  await harness.shows(id, 'running');
  for (const { agent } of harness.stack.sleds) {
    await fetch(`${agent.url}/vmms/${before?.id}`, { method: 'DELETE' });
    await fetch(`${agent.url}/vmms/${before?.id}/state`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ state: { type: 'running' } }),
    });
  }
  await harness.reconcile();
  const after = await harness.record(id);
  expect([after.externalState, after.active?.state]).toEqual(['running', 'running']);
  expect(here).toBeDefined();
  await harness.examined(false);
});

test('one silent sled hangs the operations of all others (Omicron issue 4259)', async () => {
  const ids = [await harness.running(), await harness.running()];
  const { here } = await harness.placed(ids[0] ?? '');
  for (const call of ['list', 'get', 'register', 'state:running', 'state:stopped'] as const)
    here.agent.faults.plant({ call, act: { type: 'delay', ms: 60_000 } });
  await harness.client.setSledPolicy(here.id, 'non_provisionable');
  const id = await harness.running();
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.client.setSledPolicy(here.id, 'provisionable');
});

test('an expunged sled is brought back into service while what ran there is not settled (nova bug 1922053)', async () => {
  const extra = await harness.client.addSled({
    name: 'expendable',
    address: '127.0.0.9:9',
    threads: 4,
    memory: 1024 ** 3,
  });
  await harness.client.expungeSled(extra.id);
  expect((await refused(harness.client.setSledPolicy(extra.id, 'provisionable'))).status).toBe(409);
});
