/**
 * An operator's word about sleds that hold a lease, with real agents: whatever was said, a guest runs elsewhere only when it
 * is off for certain. The guests' own journals are the witness.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { isGoneVmmState } from '../../model/states.ts';
import { type FencedSled, FencingWorld } from '../support/fencing-world.ts';
import { refused } from '../support/harness.ts';
import { eventually } from '../support/wait.ts';

/** Long enough that a busy machine renews in time, short enough to wait for. */
const LEASE_MS = 4_000;
const OFF = { sled_powered_off: true };

let world: FencingWorld;
beforeAll(async () => {
  world = await FencingWorld.start({ sleds: 4, leaseMs: LEASE_MS });
});
afterAll(() => world?.stop());

/** An instance on a sled of its own, which has nothing said about it yet. */
async function runningOn(sled: FencedSled): Promise<{ id: string; vmmId: string }> {
  const others = world.sleds.filter((one) => one !== sled && !used.has(one));
  for (const other of others) await world.client.setSledPolicy(other.id, 'non_provisionable');
  const id = await world.running({ auto_restart_policy: 'best_effort' });
  for (const other of others) await world.client.setSledPolicy(other.id, 'provisionable');
  const { active } = await world.record(id);
  expect(active?.sledId).toBe(sled.id);
  used.add(sled);
  return { id, vmmId: active?.id ?? '' };
}
const used = new Set<FencedSled>();

function sledAt(index: number): FencedSled {
  const sled = world.sleds[index];
  if (sled === undefined) throw new Error(`there is no sled ${index}`);
  return sled;
}

test('a sled that can’t be asked, and renews its lease, is refused; on the word it hears, and ends its guests', async () => {
  const sled = sledAt(0);
  const { id, vmmId } = await runningOn(sled);
  sled.down.set('cut');
  expect((await refused(world.client.expungeSled(sled.id))).message).toMatch(/lease.*power it off/);
  // Declared dead it would be by its lease alone, and that it keeps; a force-stop is a stop that waits.
  expect(await world.client.declareSledDead(sled.id, OFF)).toMatchObject({ declared_dead: null, vmm_count: 1 });
  expect((await world.vmm(vmmId))?.state).toBe('running');
  expect(await world.client.expungeSled(sled.id, OFF)).toMatchObject({ policy: { kind: 'expunged' }, state: 'active' });
  await eventually(() => /was expunged.*powered off/.test(sled.output), 'the agent never said that it was expunged');
  await world.runs(id, vmmId);
  world.witness();
});

test('a sled that is cut off: its VMMs are Failed when its lease has lapsed, and run elsewhere then', async () => {
  const sled = sledAt(1);
  const { id, vmmId } = await runningOn(sled);
  sled.up.set('cut');
  sled.down.set('cut');
  expect(await world.client.expungeSled(sled.id, OFF)).toMatchObject({ policy: { kind: 'expunged' }, state: 'active' });
  await world.runs(id, vmmId);
  expect(isGoneVmmState((await world.vmm(vmmId))?.state ?? 'running')).toBe(true);
  await eventually(
    async () => (await world.client.getSled(sled.id)).state === 'decommissioned',
    'the sled was never expunged',
  );
  world.witness();
});

test('a stop by force of a guest on a sled that is cut off ends when its lease has lapsed', async () => {
  const sled = sledAt(2);
  const { id, vmmId } = await runningOn(sled);
  sled.up.set('cut');
  sled.down.set('cut');
  await world.client.forceStopInstance(id, OFF);
  await eventually(async () => (await world.record(id)).externalState === 'stopped', 'it never ended Stopped');
  await world.client.startInstance(id);
  await world.runs(id, vmmId);
  world.witness();
});

test('and the doctor has nothing to say', async () => {
  await world.examined();
  world.witness();
});
