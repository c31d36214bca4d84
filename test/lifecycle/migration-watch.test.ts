/** The workflow that shows how far a migration is: it ends with it, and nothing depends on it. Simulated sleds give no figures. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { TASK_QUEUE } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { currentDetails, migrationWatchOf } from '../support/details.ts';
import { type Harness, silence, startHarness, wake } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  // No loop asks the sleds: what they don't report stays unknown.
  harness = await startHarness({ reconcileEveryMs: 0 });
});
afterAll(() => harness?.close());

/** Begins a migration whose end is not reported until `release`. */
async function held() {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  there.agent.faults.holdReports(true);
  await harness.client.migrateInstance(id, there.id);
  const { migration, target } = await harness.record(id);
  const watch = await migrationWatchOf(harness.temporal, migration?.id ?? '');
  const input = { instanceId: id, migrationId: migration?.id ?? '', vmmId: target?.id ?? '' };
  return { id, there, watch, input, release: () => there.agent.faults.holdReports(false) };
}

test('it shows the sides of the migration, ends with it, and costs few events', async () => {
  const { id, there, watch, release } = await held();
  await waitUntil(
    async () => /under way/.test(await currentDetails(watch)),
    'its details never showed it',
    60_000,
    100,
  ).catch(async (error: Error) => {
    throw new Error(`${error.message}; it says: ${await currentDetails(watch)}`);
  });
  expect(await currentDetails(watch)).toMatch(
    new RegExp(`sled-\\d → ${there.name}[\\s\\S]*destination: pending[\\s\\S]*no figures`),
  );
  expect(await harness.client.getMigration(id)).toMatchObject({
    outcome: null,
    target_sled: there.name,
    target_state: 'pending',
    progress: null,
  });
  release();
  expect(await watch.result()).toMatchObject({ outcome: 'completed', sledName: there.name, figures: null });
  expect(await currentDetails(watch)).toMatch(/\*\*completed\*\*/);
  await harness.rests(id);
  expect((await harness.shows(id, 'running')).active?.sledId).toBe(there.id);
  expect((await harness.client.getMigration(id)).outcome).toBe('completed');
  const history = (await harness.client.getInstanceHistory(id)).items.map(({ text }) => text);
  expect(history.filter((text) => /^migration: completed: source/.test(text))).toHaveLength(1);

  const quick = await harness.running();
  await harness.client.migrateInstance(quick, (await harness.placed(quick)).there.id);
  const { migration } = await harness.record(quick);
  const ids = migration?.id ?? (await harness.client.getMigration(quick)).id;
  const quickWatch = await migrationWatchOf(harness.temporal, ids);
  await quickWatch.result();
  // Two looks at the most, a second apart.
  expect(Number((await quickWatch.describe()).historyLength)).toBeLessThanOrEqual(20);
});

test('terminated, it is missed by nobody', async () => {
  const { id, there, watch, release } = await held();
  await watch.terminate('by a test');
  release();
  await harness.rests(id);
  expect((await harness.shows(id, 'running')).active?.sledId).toBe(there.id);
  await harness.examined(true);
});

test('it ends although a sled has vanished: with its time, or with an operator’s confirmation', async () => {
  const { id, there, watch, input } = await held();
  silence(there);
  const brief = await harness.temporal.workflow.execute('migrationWatch', {
    taskQueue: TASK_QUEUE,
    workflowId: `test-watch-${randomUUID()}`,
    args: [{ ...input, limitMs: 1_500 }],
  });
  expect(brief).toMatchObject({ outcome: 'unwatched', targetState: 'pending' });
  expect((await watch.describe()).status.name).toBe('RUNNING');
  await harness.client.expungeSled(there.id, { sled_powered_off: true });
  expect(await watch.result()).toMatchObject({ outcome: 'failed' });
  await harness.rests(id);
  wake(there);
});

test('of a migration that never was, it says nothing, and ends', async () => {
  const outcome = await harness.temporal.workflow.execute('migrationWatch', {
    taskQueue: TASK_QUEUE,
    workflowId: `test-watch-${randomUUID()}`,
    args: [{ instanceId: randomUUID(), migrationId: randomUUID(), vmmId: randomUUID() }],
  });
  expect(outcome).toEqual({ outcome: 'unwatched' });
});
