/** Traps known from the field, on real parts: migrations. Each test names the trap and where it was met. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Harness, startHarness } from '../support/harness.ts';

/** Long enough for a test to act in the middle of a migration, in milliseconds. */
const TRANSITION_MS = 800;

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ transitionMs: TRANSITION_MS, reconcileEveryMs: 1_000 });
});
afterEach(async () => {
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.examined(false);
});
afterAll(() => harness?.close());

/** Begins a migration and returns when both sides report that it is in progress. */
async function underway() {
  const id = await harness.running();
  const { here, there } = await harness.placed(id);
  await harness.client.migrateInstance(id, there.id);
  await waitUntil(
    async () => {
      const { migration } = await harness.record(id);
      return migration?.sourceState === 'in_progress' && migration.targetState === 'in_progress';
    },
    'the migration was never in progress',
    30_000,
    5,
  );
  const { active, target } = await harness.record(id);
  return { id, here, there, source: active?.id ?? '', target: target?.id ?? '' };
}

async function arrives(id: string, sledId: string) {
  await waitUntil(
    async () => {
      const { instance, active } = await harness.record(id);
      return active?.sledId === sledId && instance.migrationId === null;
    },
    'it never arrived',
    30_000,
    20,
  );
  return harness.shows(id, 'running');
}

const running = (id: string) =>
  harness.stack.sleds
    .flatMap(({ agent }) => agent.faults.guestLog())
    .filter((entry) => entry.instance_id === id)
    .reduce((count, entry) => count + (entry.event === 'began' ? 1 : -1), 0);

test('a source that dies while it holds the guest: Failed, nothing held, and it can be started', async () => {
  let { id, here, source } = await underway();
  // The moment is over when the guest has left; then it is another instance's turn.
  for (here.agent.faults.crash(source); ; here.agent.faults.crash(source)) {
    await waitUntil(
      async () => (await harness.record(id)).instance.migrationId === null,
      'the migration never ended',
      30_000,
      20,
    );
    if ((await harness.record(id)).externalState === 'failed') break;
    ({ id, here, source } = await underway());
  }
  await harness.rests(id);
  expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  await harness.client.startInstance(id);
  await harness.shows(id, 'running');
});

test('a source that dies right after it handed over takes the running target with it (KubeVirt issue 13112): it does not', async () => {
  const { id, here, there, source, target } = await underway();
  // What the source still has to report never arrives.
  here.agent.faults.holdReports(true, source);
  await waitUntil(() => there.agent.hypervisor.count(target) !== null, 'the guest never arrived', 30_000, 2);
  here.agent.faults.crash(source);
  here.agent.faults.lose(source);
  const { active } = await arrives(id, there.id);
  expect(active?.id).toBe(target);
  expect(there.agent.hypervisor.count(target)).not.toBeNull();
  here.agent.faults.holdReports(false, source);
  await harness.rests(id);
  expect(running(id)).toBe(1);
});

describe('a failed migration whose leftovers refuse the next one (KubeVirt issues 2495, 2228 and 5503)', () => {
  test.each(['source', 'target'] as const)('it fails on its %s: the next one succeeds at once', async (side) => {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    (side === 'source' ? here : there).agent.faults.plant({ migration: { side, point: 'middle' } });
    await harness.client.migrateInstance(id, there.id);
    await waitUntil(async () => (await harness.record(id)).migration?.targetState !== 'pending', 'it never began');
    await harness.shows(id, 'running');
    await harness.client.migrateInstance(id, there.id);
    await arrives(id, there.id);
    await harness.rests(id);
    expect(running(id)).toBe(1);
  });
});

test('a source that lingers after a completed migration keeps the next one waiting for ever (KubeVirt issue 18320): it does not', async () => {
  const { id, here, there, source } = await underway();
  here.agent.faults.holdReports(true, source);
  await arrives(id, there.id);
  const onward = harness.stack.sleds.find((sled) => sled.id !== here.id && sled.id !== there.id);
  await harness.client.migrateInstance(id, onward?.id ?? '');
  await arrives(id, onward?.id ?? '');
  here.agent.faults.holdReports(false, source);
  await harness.rests(id);
});

describe('a stop that reaches only one side of a migration', () => {
  const faults = ['neither', 'here', 'there', 'both'] as const;
  test.each(faults)('commanded while it is in progress; the first attempts fail on: %s', async (which) => {
    const { id, here, there } = await underway();
    const silent = { neither: [], here: [here], there: [there], both: [here, there] }[which];
    for (const { agent } of silent)
      agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' }, times: 2 });
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    await harness.rests(id);
    expect(running(id)).toBe(0);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
    expect((await harness.record(id)).instance.intendedState).toBe('stopped');
  });
});

test('a stop between two tries of migration_target kills a guest that has moved already: it is stopped where it is', async () => {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  // The destination takes the command, and its answer is lost; then the stop comes.
  there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'answer_late', ms: 4_500 }, times: 1 });
  const call = harness.client.migrateInstance(id, there.id).then(
    () => 'succeeded',
    (error: Error) => error.message,
  );
  await arrives(id, there.id);
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  expect(await call).toBe('succeeded');
  await harness.rests(id);
  const last = there.agent.faults.guestLog().filter((entry) => entry.instance_id === id);
  expect(last.at(-1)).toMatchObject({ event: 'ceased', reason: 'stopped' });
});
