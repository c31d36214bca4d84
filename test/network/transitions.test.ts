import { connect, createServer } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { findNetworkDisagreements } from '../../db/queries/find-network-disagreements.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { startSledAgent } from '../../sled-agent/server.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { networkPage } from '../../wire/network-protocol.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
let watching = true;
let watcher: Promise<void>;
const disagreements: unknown[] = [];
beforeAll(async () => {
  harness = await startHarness({ sleds: 4, networkPollMs: 100, reconcileEveryMs: 3_000 });
  // Every committed state that a look catches, whatever the test does meanwhile.
  watcher = (async () => {
    while (watching) {
      disagreements.push(...(await findNetworkDisagreements(harness.database.db)));
      await new Promise((resolve) => setTimeout(resolve, 15));
    }
  })();
});
afterAll(async () => {
  watching = false;
  await watcher;
  await harness?.close();
});

/** The network's entry of an instance, removals included; `undefined` when it never had one. */
async function entryOf(id: string) {
  const { rows } = await harness.database.pool.query(
    'SELECT sled_id, vmm_id, generation::int FROM instance_network WHERE instance_id = $1',
    [id],
  );
  return rows[0] as { sled_id: string | null; vmm_id: string | null; generation: number } | undefined;
}

/** Waits until every sled agent that lives knows an instance on the given sled, or nowhere. */
async function everyAgentKnows(id: string, sledId: string | null, except: readonly string[] = []): Promise<void> {
  const agents = harness.stack.sleds.filter((sled) => !except.includes(sled.id));
  await waitUntil(
    async () => agents.every(({ agent }) => (agent.network.entries.get(id)?.sled_id ?? null) === sledId),
    `not every sled agent came to know instance ${id} on sled ${sledId}`,
    30_000,
    10,
  );
}

function expectAgreement(): void {
  expect(disagreements).toEqual([]);
}

test('start, stop and start again: there when the guest may run, gone when Stopped is shown', async () => {
  const id = await harness.running();
  const { here } = await harness.placed(id);
  expect(await entryOf(id)).toMatchObject({ sled_id: here.id, generation: 1 });
  await everyAgentKnows(id, here.id);

  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  expect(await entryOf(id)).toEqual({ sled_id: null, vmm_id: null, generation: 2 });
  await everyAgentKnows(id, null);

  await harness.client.startInstance(id);
  const again = await harness.record(id);
  expect(await entryOf(id)).toEqual({
    sled_id: again.active?.sledId,
    vmm_id: again.instance.activeVmmId,
    generation: 3,
  });
  expectAgreement();
});

test('a migration that completes: it follows in the transaction that moves the instance', async () => {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  await everyAgentKnows(id, (await harness.placed(id)).here.id);
  await harness.client.migrateInstance(id, there.id);
  await waitUntil(
    async () => (await harness.record(id)).active?.sledId === there.id,
    'the instance never moved',
    30_000,
    10,
  );
  expect(await entryOf(id)).toMatchObject({ sled_id: there.id, generation: 2 });
  await everyAgentKnows(id, there.id);
  await harness.rests(id);
  expect((await entryOf(id))?.generation).toBe(2);
  expectAgreement();
});

/** A sled's VMMs are silent: it reports nothing, and who asks (the watcher, an update) is answered to come again. */
function mute({ agent }: StackSled): void {
  agent.faults.holdReports(true);
  for (const call of ['list', 'get'] as const)
    agent.faults.plant({ call, act: { type: 'refuse', status: 503, error_code: 'BUSY' } });
}

test('a guest that left and has not yet been reported as arrived: the network is with it already', async () => {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  mute(there);
  await harness.client.migrateInstance(id, there.id);
  await waitUntil(
    async () => (await harness.record(id)).active?.sledId === there.id,
    'the source never reported that its guest left',
    30_000,
    10,
  );
  const left = await harness.record(id);
  expect(left.migration).toMatchObject({ sourceState: 'completed' });
  expect(left.externalState).toBe('migrating');
  expect(await entryOf(id)).toMatchObject({ sled_id: there.id, generation: 2 });
  await everyAgentKnows(id, there.id);
  there.agent.faults.clear();
  await harness.shows(id, 'running');
  await harness.rests(id);
  expect(await entryOf(id)).toMatchObject({ sled_id: there.id, generation: 2 });
  expectAgreement();
});

test('a guest that left and never arrived: gone when Failed is shown', async () => {
  const id = await harness.running();
  await harness.client.updateInstance(id, { auto_restart_policy: 'never' });
  const { there } = await harness.placed(id);
  mute(there);
  await harness.client.migrateInstance(id, there.id);
  await waitUntil(
    async () => (await harness.record(id)).active?.sledId === there.id,
    'the source never reported that its guest left',
    30_000,
    10,
  );
  there.agent.faults.lose((await harness.record(id)).instance.activeVmmId ?? '');
  there.agent.faults.clear();
  await harness.shows(id, 'failed');
  expect(await entryOf(id)).toEqual({ sled_id: null, vmm_id: null, generation: 3 });
  await everyAgentKnows(id, null);
  expectAgreement();
});

test('a migration that fails, or is unwound: nothing changes', async () => {
  const id = await harness.running();
  const { here, there } = await harness.placed(id);
  const before = await entryOf(id);
  there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'refuse', status: 409 }, times: 1 });
  await refused(harness.client.migrateInstance(id, there.id));
  await harness.rests(id);
  here.agent.faults.plant({ migration: { side: 'source', point: 'middle' } });
  await harness.client.migrateInstance(id, there.id);
  await harness.shows(id, 'running');
  await harness.rests(id);
  expect((await harness.placed(id)).here.id).toBe(here.id);
  expect(await entryOf(id)).toEqual(before);
  expectAgreement();
});

test('a start that is unwound: gone when the call returns, and pollers see that it went', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 }, times: 1 }),
  );
  await refused(harness.client.startInstance(id));
  expect(await entryOf(id)).toEqual({ sled_id: null, vmm_id: null, generation: 2 });
  harness.everywhere(({ agent }) => agent.faults.clear());
  await everyAgentKnows(id, null);
  expectAgreement();
});

test('a guest that powers itself off, and one that is lost: gone when Stopped and Failed are shown', async () => {
  for (const [end, externalState] of [
    ['halt', 'stopped'],
    ['crash', 'failed'],
  ] as const) {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    await harness.client.updateInstance(id, { auto_restart_policy: 'never' });
    here.agent.faults[end]((await harness.record(id)).instance.activeVmmId ?? '');
    await harness.shows(id, externalState);
    expect(await entryOf(id)).toMatchObject({ sled_id: null, generation: 2 });
    await everyAgentKnows(id, null);
  }
  expectAgreement();
});

test('a list without a cursor has what lives and no removals; a deleted instance is in none', async () => {
  const id = await harness.running();
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.client.deleteInstance(id);
  const other = await harness.running();
  const page = networkPage.parse(await (await fetch(`${harness.stack.apiUrl}/network/instances`)).json());
  expect(page.reset).toBe(true);
  expect(page.items.every((item) => item.vmm_id !== null)).toBe(true);
  const ids = page.items.map((item) => item.instance_id);
  expect(ids).toContain(other);
  expect(ids).not.toContain(id);
  const listed: string[] = [];
  for await (const one of harness.client.listNetwork()) listed.push(one.instance_id);
  expect(listed).toContain(other);
  expectAgreement();
});

test('a cursor that is not one is refused with what to do', async () => {
  const response = await fetch(`${harness.stack.apiUrl}/network/instances?after=nonsense`);
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ message: expect.stringMatching(/^after: .*begin again without it/) });
});

test('a sled agent whose control plane is away goes on with its VMs, and learns of the network when it is back', async () => {
  const controlPlane = await freePort();
  const agent = await startSledAgent({
    name: 'alone',
    listen: `127.0.0.1:${await freePort()}`,
    controlPlaneUrl: `http://127.0.0.1:${controlPlane}`,
    threads: 4,
    memoryBytes: 2 ** 32,
    transitionMs: 1,
    networkPollMs: 10,
  });
  try {
    const vmm = `${agent.url}/vmms/8f6fd2c0-6f3c-4f0e-9d6c-0d3f6a3f7b11`;
    const put = (url: string, body: unknown) =>
      fetch(url, { method: 'PUT', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
    const registered = await put(vmm, {
      instance_id: '1b671a64-40d5-491e-99b0-da01ff1f3341',
      vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'web', ncpus: 1, memory_bytes: 2 ** 26 },
      vmm_addr: `127.0.0.1:${await freePort()}`,
    });
    expect(registered.status).toBe(200);
    expect((await put(`${vmm}/state`, { state: { type: 'running' } })).status).toBe(200);
    expect(agent.network.passes).toBe(0);

    // Any control plane will do: this one is the stack's, behind the address that was dead.
    const { hostname, port } = new URL(harness.stack.apiUrl);
    const forward = createServer((socket) => {
      const upstream = connect(Number(port), hostname);
      socket.pipe(upstream).pipe(socket);
      socket.on('error', () => upstream.destroy());
      upstream.on('error', () => socket.destroy());
    });
    await new Promise<void>((resolve) => forward.listen(controlPlane, '127.0.0.1', resolve));
    const id = await harness.running();
    await waitUntil(async () => agent.network.entries.has(id), 'the agent never learnt of the network', 30_000, 10);
    await agent.stop();
    forward.close();
  } finally {
    await agent.stop();
  }
});

test('a dead agent and an expunged sled hold nothing up', async () => {
  const id = await harness.running();
  const { here, there } = await harness.placed(id);
  await harness.client.updateInstance(id, { auto_restart_policy: 'never' });
  await here.agent.kill();
  await harness.client.setSledPolicy(here.id, 'non_provisionable');

  const other = await harness.running();
  const elsewhere = await harness.placed(other);
  await everyAgentKnows(other, elsewhere.here.id, [here.id]);

  await harness.client.expungeSled(here.id, { sled_powered_off: true });
  await harness.shows(id, 'failed');
  expect(await entryOf(id)).toEqual({ sled_id: null, vmm_id: null, generation: 2 });
  await everyAgentKnows(id, null, [here.id]);
  await harness.client.startInstance(id);
  expect((await entryOf(id))?.generation).toBe(3);
  expect(there.id).not.toBe(here.id);
  expectAgreement();
});
