/** Sleds without fencing: silence proves nothing, whatever the loops do; only an operator's confirmation gives their guests up. */
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';

let harness: Harness;
let instanceId: string;
let here: StackSled;
beforeAll(async () => {
  harness = await startHarness({ sleds: 2, registerTimeoutMs: 2_000, reconcileEveryMs: 3_000 });
});
afterAll(() => harness?.close());
beforeEach(async () => {
  instanceId = await harness.running({ auto_restart_policy: 'best_effort' });
  await harness.client.updateInstance(instanceId, { auto_restart_cooldown_seconds: 0 });
  ({ here } = await harness.placed(instanceId));
});

const mooring = (...args: string[]) => runCommand([...args, '--api-url', harness.stack.apiUrl]);

/** Its guests are off and it is silent, without a report to anybody: its records take them for alive. */
async function powerOff(sled: StackSled): Promise<void> {
  silence(sled);
  await sled.agent.hypervisor.close();
}

async function inService(sled: StackSled): Promise<void> {
  await waitUntil(
    async () => (await harness.client.getSled(sled.id)).declared_dead === null,
    `${sled.name} never came back into service`,
    60_000,
  );
}

test('a silent sled without fencing is never declared dead, however often its lease is looked for', async () => {
  silence(here);
  for (let pass = 0; pass < 3; pass++) {
    expect((await harness.client.runReconciler('fencing')).found).toEqual({
      sleds: 0,
      late: [],
      unattended: [],
      dead: [],
      failed: [],
      returned: [],
    });
    await harness.client.runReconciler('watcher');
  }
  expect(await harness.client.getSled(here.id)).toMatchObject({ lease: null, declared_dead: null });
  expect((await harness.record(instanceId)).externalState).toBe('running');
  wake(here);
  expect((await mooring('sled', 'show', here.name)).stdout).toMatch(
    /without fencing: while it is silent, only .*declare-dead/,
  );
});

test('a renewal that can’t be granted says why', async () => {
  const put = (sledId: string, leaseMs: number) =>
    fetch(`${harness.stack.apiUrl}/sleds/${sledId}/lease`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ lease_ms: leaseMs, vmms: [] }),
    }).then(async (answer) => ({ status: answer.status, body: (await answer.json()) as { message: string } }));
  const tooShort = await put(here.id, 14_000);
  expect(tooShort.status).toBe(400);
  expect(tooShort.body.message).toMatch(/lease_ms: must be at least 15000/);
  expect(await put('00000000-0000-4000-8000-000000000000', 30_000)).toMatchObject({ status: 404 });
  expect((await harness.client.getSled(here.id)).lease).toBeNull();
});

test('the confirmation must be given, and is not accepted of a sled that answers', async () => {
  expect((await refused(harness.client.declareSledDead(here.id, {}))).message).toMatch(
    /run twice if they still run there/,
  );
  expect((await refused(harness.client.declareSledDead(here.id, { sled_powered_off: true }))).message).toMatch(
    /answers, so it is powered on/,
  );
  const { stderr, code } = await mooring('sled', 'declare-dead', here.name);
  expect(code).toBe(1);
  expect(stderr).toMatch(/You vouch that sled .* is powered off/);
  expect(stderr).toMatch(/it runs twice from then on/);
  expect((await harness.client.getSled(here.id)).declared_dead).toBeNull();
  expect((await harness.record(instanceId)).externalState).toBe('running');
});

test('a sled that was declared dead: its guests run elsewhere, and it comes back once it proves what it runs', async () => {
  await powerOff(here);
  const before = (await harness.record(instanceId)).active?.id;
  const { stdout } = await mooring('sled', 'declare-dead', here.name, '--yes', '--json');
  expect(JSON.parse(stdout)).toMatchObject({ id: here.id, declared_dead: { by: 'operator' }, vmm_count: 0 });
  await waitUntil(
    async () => {
      const { externalState, active } = await harness.record(instanceId);
      return externalState === 'running' && active?.id !== before && active?.sledId !== here.id;
    },
    'the instance never ran elsewhere',
    60_000,
  );
  expect((await mooring('sled', 'show', here.name)).stdout).toMatch(/declared dead .*an operator vouched for it/);
  // It comes back and takes what it lost for alive: it is commanded to end that before it is in service.
  wake(here);
  here.agent.faults.plant({ call: 'unregister', times: 2, act: { type: 'drop_before' } });
  await inService(here);
  const inventory = (await (await fetch(`${here.agent.url}/vmms`)).json()) as { vmms: { vmm_id: string }[] };
  expect(inventory.vmms.map((vmm) => vmm.vmm_id)).not.toContain(before);
  await harness.examined(false);
});

test('a stop by force is allowed on a sled that was declared dead', async () => {
  const stopped = await harness.create('stop-me');
  const { there } = await harness.placed(instanceId);
  await harness.client.setSledPolicy(there.id, 'non_provisionable');
  // Commanded to run, and silent ever since: its start unwinds as long as the sled is silent.
  here.agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } });
  const starting = harness.client.startInstance(stopped, { waitSeconds: 0 });
  await harness.shows(stopped, 'starting');
  await starting;
  await powerOff(here);
  expect((await refused(harness.client.forceStopInstance(stopped, {}))).message).toMatch(/doesn't answer/);
  await harness.client.declareSledDead(here.id, { sled_powered_off: true });
  expect((await harness.client.forceStopInstance(stopped, {})).run_state).toMatch(/stop/);
  await harness.shows(stopped, 'stopped');
  await harness.client.setSledPolicy(there.id, 'provisionable');
  wake(here);
  await inService(here);
  await harness.examined(false);
});
