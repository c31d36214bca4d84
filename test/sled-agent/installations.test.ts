/**
 * A sled agent takes the orders of one installation: a copy of its database, which names the same sleds under another
 * installation's id, ends and learns nothing there. Every call, with data and without.
 */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { AnotherInstallation, type SledAddress, SledClient } from '../../activities/sled-client.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { ANOTHER_INSTALLATION, INSTALLATION_HEADER } from '../../wire/sled-protocol.ts';
import { ListeningControlPlane } from '../support/sled.ts';

const LIMIT_MS = 10_000;
const plane = new ListeningControlPlane();
const clients = {
  first: new SledClient(undefined, null, async () => 'aaaa1111bbbb'),
  copy: new SledClient(undefined, null, async () => 'cccc2222dddd'),
  /** As control planes that others wrote, and as other sleds. */
  unnamed: new SledClient(),
};
let folder: string;
let agent: SledAgentHandle | null = null;
let said: string[] = [];

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'mooring-test-'));
  await plane.listen();
});
beforeEach(() => {
  said = [];
});
afterEach(async () => {
  await agent?.stop();
  agent = null;
});
afterAll(async () => {
  await Promise.all(Object.values(clients).map((client) => client.close()));
  await plane.close();
  rmSync(folder, { recursive: true, force: true });
});

async function started(dataDir?: string, releaseInstallation = false): Promise<SledAddress> {
  await agent?.stop();
  agent = await startSledAgent({
    ...{ name: 's', listen: '127.0.0.1:0', controlPlaneUrl: plane.url, threads: 8, memoryBytes: 2 ** 33 },
    ...{ transitionMs: 1, networkPollMs: 0, dataDir, releaseInstallation },
    onTrouble: (message) => said.push(message),
  });
  return { name: 's', address: agent.address, keptAgentId: null };
}

const request = async () => ({
  instance_id: randomUUID(),
  vmm_runtime: { state: 'starting' as const, gen: 2, time_updated: new Date().toISOString() },
  vmm_spec: { name: 'vm', ncpus: 1, memory_bytes: 2 ** 28 },
  vmm_addr: `127.0.0.1:${await freePort()}`,
});

type Make = (client: SledClient, at: SledAddress, vmmId: string) => Promise<unknown>;
const CHANGES: Record<string, Make> = {
  register: async (client, at, vmmId) => client.register(at, vmmId, await request(), LIMIT_MS),
  unregister: (client, at, vmmId) => client.unregister(at, vmmId, LIMIT_MS),
  run: (client, at, vmmId) => client.setState(at, vmmId, { type: 'running' }, LIMIT_MS),
  stop: (client, at, vmmId) => client.setState(at, vmmId, { type: 'stopped' }, LIMIT_MS),
  reboot: (client, at, vmmId) => client.setState(at, vmmId, { type: 'reboot' }, LIMIT_MS),
  'migrate in': (client, at, vmmId) =>
    client.setState(at, vmmId, { type: 'migration_target', value: { src_vmm_addr: '10.0.0.1:1' } }, LIMIT_MS),
};
const READS: Record<string, Make> = {
  'read a state': (client, at, vmmId) => client.readState(at, vmmId, LIMIT_MS),
  'read its console': (client, at, vmmId) => client.readConsole(at, vmmId, { fromOffset: 0, maxBytes: 1 }, LIMIT_MS),
  'read all': (client, at) => client.readInventory(at, LIMIT_MS),
};
const refusalOf = (made: Promise<unknown>): Promise<unknown> =>
  made.then(
    () => null,
    (error: unknown) => error,
  );
const isRefused = async (made: Promise<unknown>) => (await refusalOf(made)) instanceof AnotherInstallation;

async function guestOfTheFirst(at: SledAddress): Promise<string> {
  const vmmId = randomUUID();
  await clients.first.register(at, vmmId, await request(), LIMIT_MS);
  await clients.first.setState(at, vmmId, { type: 'running' }, LIMIT_MS);
  await plane.untilReported(vmmId, 'running');
  return vmmId;
}

describe.each(['with data', 'without data'])('%s', (how) => {
  const data = () => (how === 'with data' ? mkdtempSync(join(folder, 'agent-')) : undefined);

  test('no call of another installation is taken, and its guests run on', async () => {
    const at = await started(data());
    const vmmId = await guestOfTheFirst(at);
    for (const [what, make] of Object.entries({ ...CHANGES, ...READS })) {
      const error = await refusalOf(make(clients.copy, at, vmmId));
      expect([what, error]).toEqual([what, expect.any(AnotherInstallation)]);
      expect(error).toMatchObject({
        kind: 'unavailable',
        answered: false,
        message: expect.stringMatching(/aaaa1111bbbb.*cccc2222dddd.*--release-installation/),
      });
    }
    // A machine that says so is powered on all the same.
    expect(await clients.copy.answers(at, LIMIT_MS)).toBe(true);
    expect(await clients.copy.describe(at, LIMIT_MS)).toMatchObject({ agent_id: expect.any(String) });
    for (const client of [clients.first, clients.unnamed])
      expect(await client.readState(at, vmmId, LIMIT_MS)).toMatchObject({ vmm_state: { state: 'running' } });
    expect(said).toEqual([expect.stringContaining('a call was refused')]);
  });

  test.each(Object.keys(CHANGES))('whose "%s" comes first is the one', async (what) => {
    const at = await started(data());
    await refusalOf(CHANGES[what]?.(clients.first, at, randomUUID()) ?? Promise.resolve());
    expect(await isRefused(clients.copy.readInventory(at, LIMIT_MS))).toBe(true);
    expect(await isRefused(clients.first.readInventory(at, LIMIT_MS))).toBe(false);
  });

  test('who only asks, or names none, is not kept', async () => {
    const at = await started(data());
    for (const make of Object.values(READS)) await refusalOf(make(clients.copy, at, randomUUID()));
    for (const make of Object.values(CHANGES)) await refusalOf(make(clients.unnamed, at, randomUUID()));
    await guestOfTheFirst(at);
    expect(await isRefused(clients.copy.readInventory(at, LIMIT_MS))).toBe(true);
  });
});

test('an agent that is started again knows it still, until an operator releases it', async () => {
  const data = mkdtempSync(join(folder, 'agent-'));
  await clients.first.unregister(await started(data), randomUUID(), LIMIT_MS);
  expect(readFileSync(join(data, 'installation'), 'utf8')).toBe('aaaa1111bbbb\n');
  for (let start = 0; start < 2; start++)
    expect(await isRefused(clients.copy.unregister(await started(data), randomUUID(), LIMIT_MS))).toBe(true);
  await clients.copy.unregister(await started(data, true), randomUUID(), LIMIT_MS);
  expect(await isRefused(clients.first.readInventory(await started(data), LIMIT_MS))).toBe(true);
});

test('what is no id of an installation is refused, kept or sent', async () => {
  const data = mkdtempSync(join(folder, 'agent-'));
  const { address } = await started(data);
  const say = async (id: string) => {
    const answer = await fetch(`http://${address}/vmms`, { headers: { [INSTALLATION_HEADER]: id } });
    return [answer.status, ((await answer.json()) as { error_code?: string }).error_code];
  };
  expect(await say('../elsewhere')).toEqual([400, 'INVALID_REQUEST']);
  await clients.first.unregister({ name: 's', address, keptAgentId: null }, randomUUID(), LIMIT_MS);
  expect(await say('cccc2222dddd')).toEqual([409, ANOTHER_INSTALLATION]);
  writeFileSync(join(data, 'installation'), '\n');
  await expect(started(data)).rejects.toThrow('--release-installation');
});
