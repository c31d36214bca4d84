/**
 * Leases and fencing with real sled agent processes: whatever befalls a sled, its guests are off before they run elsewhere,
 * and it proves what it runs before it is in service again. The guests' own journals are the witness. Every wall clock of
 * an agent and a watchdog jumps by hours all the time.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readGuestRuns } from '../../doctor/witness.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { type FencedSled, FencingWorld, STRANGE_CLOCK } from '../support/fencing-world.ts';

/** Long enough that a busy machine renews in time, short enough to wait for. */
const LEASE_MS = 4_000;
const FAULTS = [
  'cut off in both directions',
  'cut off from the control plane only',
  'heard, but without an answer',
  'paused',
  'stuck',
  'killed',
] as const;
type Fault = (typeof FAULTS)[number];

let world: FencingWorld;
/** The sled that each fault befalls, and an instance that runs there, with its VMM. */
const victims = new Map<Fault, { sled: FencedSled; instanceId: string; vmmId: string }>();

function victim(fault: Fault) {
  const found = victims.get(fault);
  if (found === undefined) throw new Error(`nobody is ${fault}`);
  return found;
}

const BEFALL: Readonly<Record<Fault, (sled: FencedSled) => void>> = {
  'cut off in both directions': (sled) => {
    sled.up.set('cut');
    sled.down.set('cut');
  },
  'cut off from the control plane only': (sled) => sled.up.set('cut'),
  'heard, but without an answer': (sled) => sled.up.set('no-answers'),
  paused: (sled) => sled.signal('SIGSTOP'),
  stuck: (sled) => sled.signal('SIGUSR2'),
  killed: (sled) => sled.signal('SIGKILL'),
};

beforeAll(async () => {
  // One sled beside them is left alone, and takes their guests.
  world = await FencingWorld.start({ sleds: FAULTS.length + 1, leaseMs: LEASE_MS, agentEnv: STRANGE_CLOCK });
  const spare = world.sleds.at(-1);
  if (spare !== undefined) await world.client.setSledPolicy(spare.id, 'non_provisionable');
  while (victims.size < FAULTS.length) {
    const instanceId = await world.running();
    const { active } = await world.record(instanceId);
    const fault = FAULTS[world.sleds.findIndex((sled) => sled.id === active?.sledId)];
    if (fault === undefined || active === null || victims.has(fault)) continue;
    victims.set(fault, { sled: world.sledOf(active.sledId), instanceId, vmmId: active.id });
  }
  if (spare !== undefined) await world.client.setSledPolicy(spare.id, 'provisionable');
});
afterAll(() => world?.stop());

test('while nothing befalls a sled, it keeps its lease for as long as one likes, whatever its clock says', async () => {
  const since = monotonicMs();
  await waitUntil(() => monotonicMs() - since > 2 * LEASE_MS, 'time stands still');
  for (const { sled, instanceId, vmmId } of victims.values()) {
    // A machine that was busy for a whole lease has powered the guests off, as it must.
    if (sled.output.includes('lapsed')) continue;
    expect((await world.record(instanceId)).active?.id).toBe(vmmId);
    expect((await world.client.getSled(sled.id)).declared_dead).toBeNull();
  }
});

test('commands that can’t reach a sled are no reason to give up one that renews', async () => {
  const { sled, instanceId, vmmId } = victim('killed');
  sled.down.set('cut');
  const since = monotonicMs();
  await waitUntil(() => monotonicMs() - since > 2 * LEASE_MS, 'time stands still');
  expect((await world.client.getSled(sled.id)).declared_dead).toBeNull();
  if (!sled.output.includes('lapsed')) expect((await world.record(instanceId)).active?.id).toBe(vmmId);
  sled.down.set('pass');
});

describe.concurrent('a sled whose agent is', () => {
  test.each(FAULTS)('%s: its guest is off, then its instance runs elsewhere', async (fault) => {
    const { sled, instanceId, vmmId } = victim(fault);
    // What a false lapse on a busy machine has moved before is not this test's.
    const before = await world.runs(instanceId);
    const there = before.active?.sledId === sled.id;
    BEFALL[fault](sled);
    sled.leaveDown();
    if (there) {
      const after = await world.runs(instanceId, before.active?.id);
      expect(after.active?.sledId).not.toBe(sled.id);
      expect(after.instance.lastStartReason).toBe('auto_restart');
      const off = readGuestRuns(sled.journal(), 'monotonic').findLast(
        (run) => run.vmmId === (before.active?.id ?? vmmId),
      );
      expect(off?.ceasedMs, 'its journal says that it is off').toBeLessThan(monotonicMs());
    }
    // Each is silent to those that count leases, except where only answers are lost.
    if (fault !== 'heard, but without an answer') await world.declaredDead(sled);
    else expect((await world.client.getSled(sled.id)).declared_dead).toBeNull();
    if (fault === 'paused' || fault === 'stuck') await sled.ended();
  });
});

test('no guest ever ran twice', () => world.witness());

test('nothing of a dead sled lives in the database, and placement passes it over', async () => {
  const dead = (await world.sledViews()).filter((sled) => sled.declared_dead !== null);
  expect(dead.length).toBeGreaterThanOrEqual(4);
  for (const sled of dead) expect(sled).toMatchObject({ vmm_count: 0, declared_dead: { by: 'lease' } });
  const { active } = await world.record(await world.running());
  expect(dead.map((sled) => sled.id)).not.toContain(active?.sledId);
});

test('sleds that come back prove that nothing of theirs runs, and are in service again', async () => {
  for (const { sled } of victims.values()) {
    sled.up.set('pass');
    sled.down.set('pass');
    sled.start();
  }
  for (const { sled } of victims.values()) await world.inService(sled);
  for (const sled of world.sleds) {
    const { vmms } = (await (await fetch(`${sled.url}/vmms`)).json()) as { vmms: { vmm_id: string }[] };
    for (const { vmm_id } of vmms) {
      const found = await world.vmm(vmm_id);
      expect(found === null || found.sledId === sled.id).toBe(true);
    }
  }
  for (const { instanceId } of victims.values()) {
    const { active } = await world.runs(instanceId);
    expect(active !== null && !isGoneVmmState(active.state)).toBe(true);
  }
  world.witness();
  await world.examined();
});
