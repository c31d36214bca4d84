/**
 * An operator's word about a sled, on a real stack whose sleds have no fencing, and whose agents hear nothing by themselves:
 * whatever is said, and in whatever order, the guests' own log is the judge.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { CannotAsk, SledClient } from '../../activities/sled-client.ts';
import { examine } from '../../doctor/examine.ts';
import { findDoubleRuns } from '../../doctor/witness.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';
import { loopbackAddress } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const OFF = { sled_powered_off: true };
/** Instances of which an operator said what was wrong, and could not be checked: they may have run twice. */
const wronglyVouched = new Set<string>();

let harness: Harness;
const more: SledAgentHandle[] = [];
const sleds = new SledClient();
/** A sled of each test's own, on which its instance runs; the sled of the stack is the only other one that takes any. */
let here: StackSled;
let id: string;
beforeAll(async () => {
  harness = await startHarness({ sleds: 1, reconcileEveryMs: 0, networkPollMs: 0 });
});
afterAll(async () => {
  await Promise.allSettled(more.map((agent) => agent.stop()));
  await sleds.close();
  await harness?.close();
});
beforeEach(async () => {
  const elsewhere = harness.stack.sleds[0];
  if (elsewhere === undefined) throw new Error('the stack has no sled');
  here = await addedSled();
  for await (const sled of harness.client.listSleds())
    if (sled.id !== here.id && sled.policy.kind === 'in_service')
      await harness.client.setSledPolicy(sled.id, 'non_provisionable');
  id = await harness.running({ auto_restart_policy: 'best_effort' });
  await harness.client.updateInstance(id, { auto_restart_cooldown_seconds: 0 });
  expect((await harness.record(id)).active?.sledId).toBe(here.id);
  await harness.client.setSledPolicy(elsewhere.id, 'provisionable');
});

async function addedSled(): Promise<StackSled> {
  const name = `extra-${more.length + 1}`;
  const ip = loopbackAddress();
  const size = { threads: 64, memoryBytes: 2 ** 38 };
  const listen = `${ip}:${await freePort(ip)}`;
  const controlPlaneUrl = harness.stack.apiUrl;
  const agent = await startSledAgent({ ...size, name, listen, controlPlaneUrl, transitionMs: 10, networkPollMs: 0 });
  more.push(agent);
  const added = await harness.client.addSled({ name, address: listen, threads: 64, memory: 2 ** 38 });
  return { id: added.id, name, agent };
}

const guestLog = () =>
  [...harness.stack.sleds.map(({ agent }) => agent), ...more].flatMap((one) => one.faults.guestLog());
const runsHere = () =>
  here.agent.faults
    .guestLog()
    .filter((entry) => entry.instance_id === id)
    .at(-1)?.event === 'began';
const mooring = (...args: string[]) => runCommand([...args, '--api-url', harness.stack.apiUrl]);

/** One pass of the loops that act on sleds, and of those that follow. */
async function pass(): Promise<void> {
  for (const loop of ['watcher', 'fencing', 'updater', 'auto-restart'] as const)
    await harness.client.runReconciler(loop);
}

async function runsElsewhere(): Promise<void> {
  await eventually(async () => {
    await pass();
    const { externalState, active } = await harness.record(id);
    return externalState === 'running' && active?.sledId !== here.id;
  }, 'the instance never ran elsewhere');
}

function noGuestRanTwice(): void {
  const twice = findDoubleRuns(guestLog()).filter((finding) => !wronglyVouched.has(finding.instanceId ?? ''));
  expect(twice).toEqual([]);
}

test('a sled that answers is refused, with what to do, and nothing is changed', async () => {
  const before = await harness.record(id);
  const calls = {
    expunge: () => harness.client.expungeSled(here.id),
    'expunge, said to be on': () => harness.client.expungeSled(here.id, { sled_powered_off: false }),
    'declare-dead': () => harness.client.declareSledDead(here.id, OFF),
    'force-stop': () => harness.client.forceStopInstance(id, OFF),
  };
  for (const [name, call] of Object.entries(calls)) {
    const error = await refused(call());
    expect([name, error.status]).toEqual([name, 409]);
    expect(error.message, name).toMatch(/answers.*(power it off|use stop)/);
  }
  expect((await refused(harness.client.expungeSled(here.id))).message).toMatch(/drain it/);
  expect(await harness.record(id)).toEqual(before);
  expect(await harness.client.getSled(here.id)).toMatchObject({ policy: { kind: 'in_service' }, vmm_count: 1 });
  const { code, stderr } = await mooring('sled', 'expunge', here.name);
  expect([code, /You vouch that sled .* removed.*--yes/.test(stderr.replaceAll('\n', ' '))]).toEqual([1, true]);
  await pass();
  expect(runsHere()).toBe(true);
  noGuestRanTwice();
});

test('while the API itself can’t ask, no word is believed, and nothing is changed', async () => {
  const before = await harness.record(id);
  const sled = await harness.client.getSled(here.id);
  const address = `${loopbackAddress()}:8099`;
  const words = {
    expunge: () => harness.client.expungeSled(here.id, OFF),
    'declare-dead': () => harness.client.declareSledDead(here.id, OFF),
    'force-stop': () => harness.client.forceStopInstance(id, OFF),
    'change-address': () => harness.client.setSledAddress(here.id, address, OFF),
  };
  const lack = Object.assign(new Error('connect EMFILE'), { code: 'EMFILE' });
  const asks = vi.spyOn(SledClient.prototype, 'answers').mockImplementation(async (asked) => {
    throw new CannotAsk(asked, lack);
  });
  try {
    for (const [name, word] of Object.entries(words)) {
      const error = await refused(word());
      expect([name, error.status, error.message]).toEqual([
        name,
        503,
        expect.stringMatching(/can't be asked.*try again/),
      ]);
    }
  } finally {
    asks.mockRestore();
  }
  expect([await harness.record(id), await harness.client.getSled(here.id)]).toEqual([before, sled]);
  expect(runsHere()).toBe(true);
});

test('on the word that a sled which answers is off, its guests are Failed when it has ended them, and not before', async () => {
  const { stdout, code } = await mooring('sled', 'expunge', here.name, '--yes', '--json');
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ policy: { kind: 'expunged' }, state: 'active', vmm_count: 1 });
  // Nobody has told it yet.
  await harness.client.runReconciler('fencing');
  await harness.client.runReconciler('auto-restart');
  expect(runsHere()).toBe(true);
  expect((await harness.record(id)).externalState).toBe('running');
  // It takes no more, and its name and address are not free.
  expect((await refused(harness.client.setSledPolicy(here.id, 'provisionable'))).status).toBe(409);
  expect((await refused(harness.client.drainSled(here.id))).status).toBe(409);
  const again = { name: `${here.name}-again`, address: here.agent.address, threads: 1, memory: 2 ** 30 };
  expect((await refused(harness.client.addSled(again))).status).toBe(400);
  await runsElsewhere();
  expect(runsHere()).toBe(false);
  expect(await harness.client.getSled(here.id)).toMatchObject({ state: 'decommissioned', vmm_count: 0 });
  noGuestRanTwice();
  await harness.examined(true);
});

test('its agent hears it with its next report, and ends its guests by itself', async () => {
  await harness.client.expungeSled(here.id, OFF);
  expect(runsHere()).toBe(true);
  const before = (await harness.record(id)).active?.id ?? '';
  await harness.client.rebootInstance(id);
  await eventually(() => !runsHere(), 'its agent never heard that the sled was expunged');
  await eventually(async () => {
    const { active } = await harness.record(id);
    return active?.id !== before || isGoneVmmState(active.state);
  }, 'that its guest was ended was never reported');
  await runsElsewhere();
  noGuestRanTwice();
});

test('a network poll is refused to who names an expunged sled, and to nobody else', async () => {
  await harness.client.expungeSled(here.id, OFF);
  const poll = async (query: string) => {
    const answer = await fetch(`${harness.stack.apiUrl}/network/instances${query}`);
    return [answer.status, ((await answer.json()) as { error_code?: string }).error_code];
  };
  expect(await poll(`?sled_id=${here.id}`)).toEqual([403, 'SLED_EXPUNGED']);
  expect(await poll('')).toEqual([200, undefined]);
  expect(await poll(`?sled_id=${harness.stack.sleds[0]?.id}`)).toEqual([200, undefined]);
  expect(await poll(`?sled_id=${randomUUID()}`)).toEqual([200, undefined]);
  await runsElsewhere();
  noGuestRanTwice();
});

test('a start that is under way on a sled which is expunged alive fails, and is undone there', async () => {
  const elsewhere = harness.stack.sleds[0]?.id ?? '';
  await harness.client.setSledPolicy(elsewhere, 'non_provisionable');
  const starting = await harness.create();
  here.agent.faults.plant({ call: 'register', act: { type: 'answer_late', ms: 300 }, times: 1 });
  const started = refused(harness.client.startInstance(starting));
  await harness.shows(starting, 'starting');
  await harness.client.expungeSled(here.id, OFF);
  expect((await started).status).toBeGreaterThanOrEqual(409);
  await harness.shows(starting, 'stopped');
  expect(here.agent.faults.guestLog().filter((entry) => entry.instance_id === starting)).toEqual([]);
  await harness.client.setSledPolicy(elsewhere, 'provisionable');
  await runsElsewhere();
  noGuestRanTwice();
});

test('a silent sled with VMs needs the word; an empty one that nobody hears does not', async () => {
  silence(here);
  const error = await refused(harness.client.expungeSled(here.id));
  expect([error.status, /sled_powered_off: true/.test(error.message)]).toEqual([409, true]);
  expect((await harness.record(id)).externalState).toBe('running');
  const ip = loopbackAddress();
  const gone = {
    name: `gone-${ip}`.replaceAll('.', '-'),
    address: `${ip}:${await freePort(ip)}`,
    threads: 1,
    memory: 2 ** 30,
  };
  const empty = await harness.client.addSled(gone);
  expect(await harness.client.expungeSled(empty.id)).toMatchObject({ state: 'decommissioned' });
  wake(here);
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
});

test('a sled that falls silent after it has answered is not believed to be off: the word is asked for anew', async () => {
  await harness.client.expungeSled(here.id, OFF);
  silence(here);
  await pass();
  expect(await harness.client.getSled(here.id)).toMatchObject({ state: 'active', vmm_count: 1 });
  expect((await harness.record(id)).active?.sledId).toBe(here.id);
  expect((await refused(harness.client.expungeSled(here.id))).status).toBe(409);
  await here.agent.kill();
  expect(await harness.client.expungeSled(here.id, OFF)).toMatchObject({ state: 'decommissioned' });
  await runsElsewhere();
  noGuestRanTwice();
});

test('an operator who was wrong: the doctor names each second copy, and the sled ends it once it answers', async () => {
  wronglyVouched.add(id);
  silence(here);
  expect(await harness.client.expungeSled(here.id, OFF)).toMatchObject({ state: 'decommissioned' });
  await eventually(async () => {
    await harness.client.runReconciler('updater');
    await harness.client.runReconciler('auto-restart');
    return (await harness.record(id)).active?.sledId === harness.stack.sleds[0]?.id;
  }, 'the instance never ran elsewhere');
  await harness.shows(id, 'running');
  expect(runsHere()).toBe(true);
  wake(here);
  here.agent.faults.holdReports(true);
  const { findings } = await examine({ db: harness.database.db, sleds, atRest: false });
  expect(findings.map(({ rule, instanceId }) => [rule, instanceId])).toEqual(
    expect.arrayContaining([
      ['one guest at a time', id],
      ['no guest on an expunged sled', id],
    ]),
  );
  await harness.client.runReconciler('watcher');
  expect(runsHere()).toBe(false);
  expect((await examine({ db: harness.database.db, sleds, atRest: false })).findings).toEqual([]);
  expect((await harness.record(id)).externalState).toBe('running');
});

test('its agent, added anew at once, takes VMs of the new sled, and has none of the old one', async () => {
  await harness.client.expungeSled(here.id, OFF);
  await runsElsewhere();
  const { address } = here.agent;
  const anew = await harness.client.addSled({ name: here.name, address, threads: 64, memory: 2 ** 38 });
  await harness.client.migrateInstance(id, anew.id);
  await eventually(async () => {
    const { externalState, active } = await harness.record(id);
    return externalState === 'running' && active?.sledId === anew.id;
  }, 'nothing moved to the new sled');
  expect(runsHere()).toBe(true);
  noGuestRanTwice();
});
