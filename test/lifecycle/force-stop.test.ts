/** A stop by force: what an operator's confirmation about a silent sled ends, in every state, and what it never does. */
import { and, eq, isNull } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { operation, vmm } from '../../db/schema.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ reconcileEveryMs: 1_000, registerTimeoutMs: 4_000, sleds: 3 });
});
afterEach(() => harness.everywhere(wake));
afterAll(() => harness?.close());

const off = { sled_powered_off: true };
/** Instances whose operator was wrong, and which were started again: their guests' doing is the operator's. */
const wronglyVouched = new Set<string>();

async function ends(id: string): Promise<void> {
  await harness.shows(id, 'stopped');
  await harness.rests(id);
  expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  expect((await harness.record(id)).instance.intendedState).toBe('stopped');
}

/** Begins a call and leaves it to itself; what it comes to is of no interest. */
function begin(call: Promise<unknown>): void {
  call.catch(() => {});
}

describe('the confirmation is not accepted', () => {
  test('of a sled that answers: 409 says to use stop, and nothing is changed', async () => {
    const id = await harness.running();
    const before = await harness.record(id);
    const error = await refused(harness.client.forceStopInstance(id, off));
    expect(error.status).toBe(409);
    expect(error.message).toMatch(/answers.*use stop/);
    expect(await harness.record(id)).toEqual(before);
  });

  test.each([503, 410, 404])('of a sled whose agent answers %i', async (status) => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    here.agent.faults.plant({ call: 'list', act: { type: 'refuse', status } });
    expect((await refused(harness.client.forceStopInstance(id, off))).message).toMatch(/use stop/);
    expect((await harness.record(id)).externalState).toBe('running');
  });

  test('that is not given: 409 says what to do, and nothing is changed', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    silence(here);
    const before = await harness.record(id);
    for (const statement of [{}, { sled_powered_off: false }]) {
      const error = await refused(harness.client.forceStopInstance(id, statement));
      expect(error.status).toBe(409);
      expect(error.message).toMatch(/sled_powered_off: true.*expunge/);
    }
    expect(await harness.record(id)).toEqual(before);
  });
});

describe('on the confirmation that the silent sled is off', () => {
  test('a running instance ends Stopped, can be started at once, and what its sled says later changes nothing', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    const lost = (await harness.record(id)).active?.id;
    silence(here);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    await harness.client.setSledPolicy(here.id, 'non_provisionable');
    await harness.client.startInstance(id);
    const again = await harness.shows(id, 'running');
    wronglyVouched.add(id);
    // The operator was wrong: the sled comes back with the guest still running. The sweep ends it there.
    wake(here);
    await waitUntil(() => here.agent.hypervisor.count(lost ?? '') === null, 'the sweep never ended the old VMM');
    expect((await harness.record(id)).active?.id).toBe(again.active?.id);
    expect((await harness.record(id)).externalState).toBe('running');
    await harness.client.setSledPolicy(here.id, 'provisionable');
  });

  test('a stopping instance, whose stop nobody takes, ends Stopped', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    here.agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' } });
    await harness.client.stopInstance(id);
    silence(here);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
  });

  test('a starting instance whose sled was never commanded ends Stopped, and its guest never runs', async () => {
    const id = await harness.create();
    harness.everywhere(silence);
    begin(harness.client.startInstance(id));
    const { active } = await harness.shows(id, 'starting');
    await harness.client.forceStopInstance(id, off);
    harness.everywhere(wake);
    await ends(id);
    await waitUntil(async () => (await openRuns(id)) === 0, 'the start never ended');
    expect(ran(id)).toEqual([]);
    expect((await harness.record(id)).instance.activeVmmId).not.toBe(active?.id);
  });

  test('a starting instance whose sled was commanded ends Stopped', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));
    begin(harness.client.startInstance(id));
    await waitUntil(async () => (await harness.record(id)).active?.commandedAt != null, 'its sled was never commanded');
    harness.everywhere(silence);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    await waitUntil(async () => (await openRuns(id)) === 0, 'the start never ended');
  });

  test('a start that unwinds, and waits for the silent sled, waits no more', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => {
      agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
      agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 }, times: 1 });
    });
    begin(harness.client.startInstance(id));
    await waitUntil(async () => (await harness.record(id)).active?.unwindingSince != null, 'it never unwound');
    expect((await harness.record(id)).externalState).toBe('starting');
    harness.everywhere(silence);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    await waitUntil(async () => (await openRuns(id)) === 0, 'the start never ended');
  });

  test('a rebooting instance ends Stopped', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    const { active } = await harness.record(id);
    here.agent.faults.holdReports(true);
    await harness.client.rebootInstance(id);
    silence(here);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    expect((await harness.record(id)).active?.id).not.toBe(active?.id);
  });
});

describe('while migrating', () => {
  async function migrating() {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'drop_before' } });
    begin(harness.client.migrateInstance(id, there.id));
    await waitUntil(
      async () => (await harness.record(id)).target?.commandedAt != null,
      'the destination was never commanded',
    );
    expect((await harness.record(id)).externalState).toBe('migrating');
    return { id, here, there };
  }

  test('a silent destination: only it is failed, the stop is carried to the source', async () => {
    const { id, here, there } = await migrating();
    const source = (await harness.record(id)).active?.id;
    silence(there);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    expect(await vmmState(source)).toBe('destroyed');
    // The sled forgets it when its report has been answered.
    await waitUntil(() => here.agent.hypervisor.count(source ?? '') === null, 'its guest is still there');
    await waitUntil(async () => (await openRuns(id)) === 0, 'the migration never ended');
  });

  test('a silent source: only it is failed, the stop is carried to the destination', async () => {
    const { id, here, there } = await migrating();
    const target = (await harness.record(id)).target?.id;
    silence(here);
    await harness.client.forceStopInstance(id, off);
    expect(await vmmState((await harness.record(id)).active?.id)).toBe('failed');
    wake(there);
    await ends(id);
    expect(there.agent.hypervisor.count(target ?? '')).toBe(null);
    // Its guest went on where the operator confirmed that nothing runs: the sweep ends it.
    wake(here);
  });

  test('both silent: both are failed', async () => {
    const { id, here, there } = await migrating();
    silence(here);
    silence(there);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    await waitUntil(async () => (await openRuns(id)) === 0, 'the migration never ended');
  });

  test('both answer: refused', async () => {
    const { id, there } = await migrating();
    expect((await refused(harness.client.forceStopInstance(id, off))).status).toBe(409);
    wake(there);
    await harness.shows(id, 'running');
  });

  test('a migration that unwinds, and waits for its silent destination, waits no more', async () => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'refuse', status: 409 } });
    there.agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
    begin(harness.client.migrateInstance(id, there.id));
    await waitUntil(async () => (await harness.record(id)).target?.unwindingSince != null, 'it never unwound');
    silence(there);
    await harness.client.forceStopInstance(id, off);
    await ends(id);
    await waitUntil(async () => (await openRuns(id)) === 0, 'the migration never ended');
  });
});

test('a sled that is expunged needs no confirmation', async () => {
  const id = await harness.create();
  const { id: sledId } = await harness.client.addSled({
    name: 'lost',
    address: '127.0.0.1:9',
    threads: 64,
    memory: 2 ** 38,
  });
  for (const sled of harness.stack.sleds) await harness.client.setSledPolicy(sled.id, 'non_provisionable');
  begin(harness.client.startInstance(id));
  await harness.shows(id, 'starting');
  await harness.client.expungeSled(sledId, off);
  await harness.client.forceStopInstance(id);
  await ends(id);
  for (const sled of harness.stack.sleds) await harness.client.setSledPolicy(sled.id, 'provisionable');
});

test('Stopped stays Stopped, and Failed becomes Stopped', async () => {
  const stopped = await harness.create();
  expect((await harness.client.forceStopInstance(stopped)).run_state).toBe('stopped');
  const failed = await harness.running();
  const { here } = await harness.placed(failed);
  here.agent.faults.lose((await harness.record(failed)).active?.id ?? '');
  await harness.shows(failed, 'failed');
  expect((await harness.client.forceStopInstance(failed)).run_state).toBe('stopped');
});

test('no guest ran twice at a time, in all that this file did', () => {
  const running = new Map<string, Set<string>>();
  const entries = harness.stack.sleds
    .flatMap(({ agent }) => agent.faults.guestLog())
    .sort((a, b) => a.time.localeCompare(b.time) || b.event.localeCompare(a.event));
  expect(entries.length).toBeGreaterThan(0);
  for (const { instance_id, vmm_id, event } of entries) {
    const guests = running.get(instance_id) ?? new Set<string>();
    running.set(instance_id, guests);
    if (event === 'began') guests.add(vmm_id);
    else guests.delete(vmm_id);
    if (!wronglyVouched.has(instance_id)) expect(guests.size, `guests of ${instance_id}`).toBeLessThan(2);
  }
});

async function vmmState(vmmId: string | null | undefined): Promise<string> {
  const [row] = await harness.database.db
    .select()
    .from(vmm)
    .where(eq(vmm.id, vmmId ?? ''));
  return row?.state ?? 'unknown';
}

/** How many sagas of an instance are open, by their operations. */
async function openRuns(id: string): Promise<number> {
  const rows = await harness.database.db
    .select()
    .from(operation)
    .where(and(eq(operation.instanceId, id), isNull(operation.timeEnded)));
  return rows.length;
}

function ran(id: string) {
  return harness.stack.sleds
    .flatMap(({ agent }) => agent.faults.guestLog())
    .filter((entry) => entry.instance_id === id && entry.event === 'began');
}
