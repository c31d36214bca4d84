/**
 * Nobody is declared dead because the control plane was away, or because one of its parts was. What its sleds did meanwhile
 * (an outage that is longer than the lease costs every guest on a sled with fencing) is mended when it is back.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { marginMs } from '../../model/lease.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { FencingWorld } from '../support/fencing-world.ts';

const LEASE_MS = 3_000;
const LONGER_THAN_ANY_WAIT_MS = 2 * (LEASE_MS + marginMs(LEASE_MS));

let world: FencingWorld;
let instances: string[];
beforeAll(async () => {
  world = await FencingWorld.start({ sleds: 2, leaseMs: LEASE_MS });
  instances = [await world.running(), await world.running(), await world.running()];
});
afterAll(() => world?.stop());
beforeEach(async () => {
  for (const sled of world.sleds) await world.inService(sled);
  for (const id of instances) await world.runs(id);
});

async function passes(ms: number): Promise<void> {
  const since = monotonicMs();
  await waitUntil(() => monotonicMs() - since > ms, 'time stands still');
}

/** A pass that has looked at every lease since, by the schedule or by hand: whatever it would do, it has done. */
async function judged(): Promise<void> {
  await world.client.runReconciler('fencing');
}

const OUTAGES = {
  'the API': { down: () => world.stopApi(), up: () => world.startApi() },
  'the database': { down: () => world.killDatabase(), up: () => world.startDatabase() },
  'the API and the database': {
    down: async () => {
      await world.stopApi();
      await world.killDatabase();
    },
    up: async () => {
      await world.startDatabase();
      await world.startApi();
    },
  },
} as const;

test.each(Object.keys(OUTAGES) as (keyof typeof OUTAGES)[])(
  'while %s is away for longer than lease and margin, nobody is declared dead, and all runs again afterwards',
  async (what) => {
    const before = await world.declarations();
    await OUTAGES[what].down();
    await passes(LONGER_THAN_ANY_WAIT_MS);
    await OUTAGES[what].up();
    // At once: the sleds have not renewed yet, and their old leases are long over.
    await waitUntil(
      () =>
        judged().then(
          () => true,
          () => false,
        ),
      'no pass of the fencing loop succeeded',
      60_000,
      200,
    );
    expect(await world.declarations()).toBe(before);
    for (const sled of world.sleds) await world.inService(sled);
    for (const id of instances) await world.runs(id);
    expect(await world.declarations()).toBe(before);
    world.witness();
  },
);

test('an outage that is shorter than what a lease has left is not noticed by any guest', async () => {
  const vmms = await Promise.all(instances.map(async (id) => (await world.record(id)).active?.id));
  const lapses = world.sleds.map((sled) => sled.output.split('lapsed').length);
  await world.stopApi();
  await world.startApi();
  await passes(2 * LEASE_MS);
  // A machine that was busy for a whole lease has powered the guests off, as it must.
  if (world.sleds.some((sled, index) => sled.output.split('lapsed').length > (lapses[index] ?? 0))) return;
  expect(await Promise.all(instances.map(async (id) => (await world.record(id)).active?.id))).toEqual(vmms);
});

test('a sled that dies in an outage is declared dead after it, a whole lease and margin later', async () => {
  const id = instances[0] ?? '';
  const { active } = await world.record(id);
  const sled = world.sledOf(active?.sledId);
  await world.stopApi();
  sled.signal('SIGKILL');
  await sled.ended();
  await passes(LONGER_THAN_ANY_WAIT_MS);
  const back = monotonicMs();
  await world.startApi();
  await world.declaredDead(sled);
  expect(monotonicMs() - back).toBeGreaterThanOrEqual(LEASE_MS + marginMs(LEASE_MS));
  await world.runs(id, active?.id);
  sled.start();
  await world.inService(sled);
  world.witness();
  await world.examined();
});
