/** The four rules of SagaUnwound (Omicron PR #5855), and what follows from them. */
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ reconcileEveryMs: 1_000 });
});
afterEach(() => harness.examined(false));
afterAll(() => harness?.close());

async function unwound(): Promise<string> {
  const id = await harness.create();
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
  );
  await refused(harness.client.startInstance(id));
  harness.everywhere(({ agent }) => agent.faults.clear());
  return id;
}

test('rule 1: a start replaces a saga_unwound VMM, and a migration a saga_unwound target', async () => {
  await harness.stack.worker.setUpdates(false);
  const id = await unwound();
  const leftover = (await harness.record(id)).instance.activeVmmId;
  await harness.client.startInstance(id);
  const { instance } = await harness.shows(id, 'running');
  expect(instance.activeVmmId).not.toBe(leftover);
  const { there } = await harness.placed(id);
  there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'refuse', status: 409 }, times: 1 });
  await refused(harness.client.migrateInstance(id, there.id));
  const target = (await harness.record(id)).target;
  expect(target?.state).toBe('saga_unwound');
  await harness.client.migrateInstance(id, there.id);
  expect((await harness.record(id)).target?.id).not.toBe(target?.id);
  await harness.stack.worker.setUpdates(true);
  await waitUntil(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
  await harness.rests(id);
});

test('rule 2: an instance whose active VMM is saga_unwound shows Stopped, and can be stopped and deleted', async () => {
  await harness.stack.worker.setUpdates(false);
  const id = await unwound();
  expect((await harness.client.getInstance(id)).run_state).toBe('stopped');
  expect((await harness.client.stopInstance(id)).run_state).toBe('stopped');
  const { name } = await harness.client.getInstance(id);
  await harness.client.deleteInstance(id);
  expect((await refused(harness.client.getInstance(id))).status).toBe(404);
  expect((await harness.record(id)).instance).toMatchObject({ state: 'vmm', timeDeleted: expect.any(Date) });
  await harness.create(name);
  await harness.stack.worker.setUpdates(true);
  await waitUntil(
    async () => (await harness.record(id)).instance.state === 'destroyed',
    'the deleted instance never ended',
  );
});

test('rule 3: a saga_unwound target changes nothing of what is shown', async () => {
  await harness.stack.worker.setUpdates(false);
  const id = await harness.running();
  const { there } = await harness.placed(id);
  there.agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 }, times: 1 });
  await refused(harness.client.migrateInstance(id, there.id));
  expect((await harness.client.getInstance(id)).run_state).toBe('running');
  await harness.client.rebootInstance(id);
  await harness.shows(id, 'running');
  await harness.stack.worker.setUpdates(true);
  await harness.rests(id);
  expect((await harness.record(id)).instance).toMatchObject({ targetVmmId: null, migrationId: null });
});

test('rule 4: the update saga clears a saga_unwound id as it does a destroyed one', async () => {
  const id = await unwound();
  await waitUntil(async () => (await harness.record(id)).instance.activeVmmId === null, 'the id was never cleared');
  expect((await harness.record(id)).instance).toMatchObject({ state: 'no_vmm' });
  await harness.rests(id);
});

test('an update that does not run is begun without a signal, and one that runs is signalled', async () => {
  await harness.stack.worker.setUpdates(false);
  const id = await harness.create();
  const events = async () =>
    (await harness.temporal.workflow.getHandle(workflowIds.update(id)).fetchHistory()).events ?? [];
  const signals = async () =>
    (await events()).filter((event) => event.workflowExecutionSignaledEventAttributes != null).length;
  await harness.signalUpdate(id);
  expect(await signals()).toBe(0);
  await harness.signalUpdate(id);
  expect(await signals()).toBe(1);
  await harness.stack.worker.setUpdates(true);
  await harness.temporal.workflow.getHandle(workflowIds.update(id)).result();
});

test('a hundred signals make few runs, and one that comes while the update finishes is not lost', async () => {
  const id = await harness.create();
  const handle = () => harness.temporal.workflow.getHandle(workflowIds.update(id));
  const signal = () => harness.signalUpdate(id);
  await Promise.all(Array.from({ length: 100 }, signal));
  await handle().result();
  let runs = 0;
  for await (const run of harness.temporal.workflow.list({ query: `WorkflowId = "${workflowIds.update(id)}"` }))
    runs += run ? 1 : 0;
  expect(runs).toBeLessThan(50);
  // Each round, a fact and its signal race the completion of the run before.
  for (let round = 0; round < 15; round++) {
    await harness.client.startInstance(id);
    const { active } = await harness.shows(id, 'running');
    const { here } = await harness.placed(id);
    void signal();
    here.agent.faults.halt(active?.id ?? '');
    await harness.shows(id, 'stopped');
  }
});

test('updates that race never clear an id twice', async () => {
  await harness.stack.worker.setUpdates(false);
  const id = await unwound();
  const before = (await harness.record(id)).instance.stateGeneration;
  const results = await Promise.all(Array.from({ length: 8 }, () => commitUpdate(harness.database.db, id)));
  expect(results.filter((result) => result?.rounds.length !== 0)).toHaveLength(1);
  expect((await harness.record(id)).instance.stateGeneration).toBe(before + 1);
  await harness.stack.worker.setUpdates(true);
});

test('PostgreSQL itself refuses a change of ids without a new generation, and a gone VMM that comes back', async () => {
  const id = await harness.running();
  const { active } = await harness.record(id);
  const { db } = harness.database;
  await expect(
    db.execute(sql`UPDATE instance SET state = 'no_vmm', active_vmm_id = NULL WHERE id = ${id}`),
  ).rejects.toThrow();
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await expect(
    db.execute(sql`UPDATE vmm SET state = 'running', state_generation = 99 WHERE id = ${active?.id}`),
  ).rejects.toThrow();
});

test('after all this the installation comes to rest, and the doctor finds nothing', async () => {
  await harness.examined(true);
});
