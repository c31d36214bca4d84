import { randomUUID } from 'node:crypto';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { AgentDescriber } from '../../sled-agent/agent-description.ts';
import { difference, readInterfaces } from '../../sled-agent/data-place.ts';
import { joinSled } from '../../sled-agent/join.ts';
import { startSledAgent } from '../../sled-agent/server.ts';
import { writeInviteToken } from '../../wire/invite-token.ts';
import { AGENT_ID_HEADER, agentDescription } from '../../wire/sled-protocol.ts';

let dataDir: string;
beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), 'mooring-test-'));
});
afterEach(() => rmSync(dataDir, { recursive: true, force: true }));

const start = (options: { dataDir?: string; controlPlaneUrl?: string; leaseMs?: number; movedData?: boolean } = {}) =>
  startSledAgent({
    name: 'sled-who',
    listen: '127.0.0.1:0',
    controlPlaneUrl: options.controlPlaneUrl ?? 'http://127.0.0.1:9',
    threads: 1,
    memoryBytes: 2 ** 30,
    networkPollMs: 0,
    dataDir: options.dataDir,
    movedData: options.movedData,
    ...(options.leaseMs === undefined ? {} : { fencing: { leaseMs: options.leaseMs } }),
  });

async function ask(url: string) {
  const response = await fetch(`${url}/agent`);
  expect(response.status).toBe(200);
  return agentDescription.parse(await response.json());
}

test('an agent keeps its id with its data, through restarts and changes of its address; without data it is another one', async () => {
  const first = await start({ dataDir });
  const before = await ask(first.url).finally(() => first.stop());
  expect(before).toMatchObject({ version: expect.stringMatching(/^\d+\.\d+\.\d+/), trouble: [] });
  expect(readFileSync(join(dataDir, 'agent-id'), 'utf8').trim()).toBe(before.agent_id);

  const again = await start({ dataDir });
  expect(await ask(again.url).finally(() => again.stop())).toEqual(before);

  expect(before.agent_id_kept).toBe(true);

  const other = await start();
  const unkept = await ask(other.url).finally(() => other.stop());
  expect(unkept.agent_id).not.toBe(before.agent_id);
  expect(unkept.agent_id_kept).toBe(false);
});

test('every answer of an agent says who gives it, from the first one on', async () => {
  for (const options of [{ dataDir }, {}]) {
    const agent = await start(options);
    try {
      const shown: (string | null)[] = [];
      for (const [method, path] of [
        ['GET', '/vmms/00000000-0000-4000-8000-000000000001/state'],
        ['DELETE', '/vmms/00000000-0000-4000-8000-000000000001'],
        ['GET', '/vmms'],
        ['GET', '/nowhere'],
        ['PUT', '/vmms/1'],
      ] as const)
        shown.push((await fetch(`${agent.url}${path}`, { method })).headers.get(AGENT_ID_HEADER));
      const { agent_id } = await ask(agent.url);
      expect(new Set(shown)).toEqual(new Set([agent_id]));
    } finally {
      await agent.stop();
    }
  }
});

test('an agent’s reports say who gives them', async () => {
  const shown: unknown[] = [];
  const plane = createServer((request, response) => {
    if (request.url?.startsWith('/vmms/')) shown.push(request.headers[AGENT_ID_HEADER]);
    request.resume();
    response.writeHead(204, { 'x-request-id': 'r' }).end();
  });
  await new Promise<void>((resolve) => plane.listen(0, '127.0.0.1', resolve));
  const agent = await start({ dataDir, controlPlaneUrl: `http://127.0.0.1:${(plane.address() as AddressInfo).port}` });
  try {
    const response = await fetch(`${agent.url}/vmms/${randomUUID()}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        instance_id: randomUUID(),
        vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
        vmm_spec: { name: 'v', ncpus: 1, memory_bytes: 2 ** 29 },
        vmm_addr: '127.0.0.1:1',
      }),
    });
    expect(response.status).toBe(200);
    await waitUntil(() => shown.length > 0, 'nothing was reported');
    expect(shown[0]).toBe((await ask(agent.url)).agent_id);
  } finally {
    await agent.stop();
    plane.closeAllConnections();
    plane.close();
  }
});

test('an agent that can not keep its id shows none, and does not try at each answer', () => {
  const describer = new AgentDescriber(join(dataDir, 'file', 'below'));
  writeFileSync(join(dataDir, 'file'), '');
  expect([describer.agentId, describer.agentId]).toEqual([null, null]);
  rmSync(join(dataDir, 'file'));
  expect(describer.agentId).toBeNull();
  expect(describer.describe().agent_id).toBe(describer.agentId);
});

test('an agent that knows neither its lease nor what runs here says who it is: it can be added', async () => {
  const agent = await start({ leaseMs: 60_000 });
  try {
    expect((await fetch(`${agent.url}/vmms`)).status).toBe(503);
    expect((await ask(agent.url)).agent_id).toBeTruthy();
  } finally {
    await agent.kill();
  }
});

test('an id that can not be kept is told to nobody, and made when it can; a file without one gets one', () => {
  const unkept = new AgentDescriber(join(dataDir, 'file', 'below'));
  writeFileSync(join(dataDir, 'file'), '');
  expect(() => unkept.describe()).toThrow('ENOTDIR');
  rmSync(join(dataDir, 'file'));
  expect(unkept.describe().agent_id).toBe(unkept.describe().agent_id);

  writeFileSync(join(dataDir, 'agent-id'), '');
  const made = new AgentDescriber(dataDir).describe().agent_id;
  expect(new AgentDescriber(dataDir).describe().agent_id).toBe(made);
});

describe('an agent’s data that are at another place', () => {
  /** Starts an agent with these data, and has them say something else of their place. */
  const dataSaying = async (change: Record<string, string | readonly string[]>) => {
    await start({ dataDir }).then((agent) => agent.stop());
    const path = join(dataDir, 'data-place.json');
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), ...change }));
  };

  test.each([
    ['of another machine', { machine: 'another', hardware: '', interfaces: [] }, readFileOf('/etc/machine-id') === ''],
    ['of other hardware, by its interfaces', { hardware: '', interfaces: ['another'] }, readInterfaces().length === 0],
    ['of other hardware', { hardware: 'another' }, readFileOf('/sys/class/dmi/id/product_uuid') === ''],
    ['of another folder', { inode: '1' }, false],
    ['of another file system at another place', { device: '1', folder: '/elsewhere' }, false],
    ['of a file system whose number has changed', { device: '1' }, true],
    ['of a folder that was renamed', { folder: '/elsewhere' }, true],
    ['of a machine that could not be told', { machine: '', hardware: '' }, true],
  ])('%s', async (_, change, taken) => {
    await dataSaying(change);
    if (taken) return (await start({ dataDir })).stop();
    await expect(start({ dataDir })).rejects.toThrow(/at another place.*--moved-data/);
    // Once is enough.
    await start({ dataDir, movedData: true }).then((agent) => agent.stop());
    await start({ dataDir }).then((agent) => agent.stop());
  });

  test('on hardware that is known to be the same, or not: in every case', () => {
    const here = { machine: 'm', hardware: 'h', interfaces: ['a', 'b'], device: '1', inode: '2', folder: '/data' };
    for (const machine of ['m', 'another', ''])
      for (const hardware of ['h', 'another', ''])
        for (const interfaces of [['a', 'b'], ['b', 'c'], ['c'], []])
          for (const folder of ['/data', '/elsewhere'])
            for (const inode of ['2', '3']) {
              const known = { machine, hardware, interfaces, device: '1', inode, folder };
              const byInterface = interfaces.length === 0 ? null : interfaces.includes('b');
              const isSame = hardware === '' ? byInterface : hardware === 'h';
              const isOneMachine = machine !== 'another' || (isSame === true && folder === '/data');
              for (const [one, other] of [
                [known, here],
                [here, known],
              ] as const)
                expect([known, difference(one, other) === null]).toEqual([
                  known,
                  isOneMachine && isSame !== false && inode === '2',
                ]);
            }
  });

  test('the interfaces of the hardware are told from those of software, and read whoever asks', () => {
    const add = (name: string, address: string | null, isHardware: boolean) => {
      const folder = join(dataDir, 'net', name);
      mkdirSync(folder, { recursive: true });
      if (address !== null) writeFileSync(join(folder, 'address'), `${address}\n`);
      if (isHardware) {
        mkdirSync(join(dataDir, 'devices', name), { recursive: true });
        writeFileSync(join(dataDir, 'devices', name, 'uevent'), '');
        symlinkSync(join(dataDir, 'devices', name), join(folder, 'device'));
      }
    };
    expect(readInterfaces(join(dataDir, 'net'))).toEqual([]);
    add('lo', '00:00:00:00:00:00', false);
    add('br0', '02:00:00:00:00:01', false);
    add('eth1', '52:54:00:AA:00:02', true);
    add('eth0', '52:54:00:aa:00:01', true);
    add('bond-of-eth0', '52:54:00:aa:00:01', true);
    add('ib0', '00:00:00:00:00:00', true);
    add('wlan0', null, true);
    writeFileSync(join(dataDir, 'net', 'bonding_masters'), 'bond0');
    expect(readInterfaces(join(dataDir, 'net'))).toEqual(['52:54:00:aa:00:01', '52:54:00:aa:00:02']);
  });

  test('a copy is nobody’s, to run and to join with; a folder that was renamed is the same', async () => {
    const own = await start({ dataDir });
    const copy = `${dataDir}-copy`;
    const renamed = `${dataDir}-renamed`;
    try {
      cpSync(dataDir, copy, { recursive: true, filter: (source) => !source.endsWith('.lock') });
      await expect(start({ dataDir: copy })).rejects.toThrow(/at another place.*--moved-data/);
      const token = writeInviteToken({ url: 'https://127.0.0.1:9', secret: 's'.repeat(43), authority: '0'.repeat(64) });
      const joining = { token, folder: copy, address: '127.0.0.1:1', threads: 1, memoryBytes: 2 ** 30 };
      await expect(joinSled(joining)).rejects.toThrow(/at another place/);
      const before = await ask(own.url);
      await own.stop();
      renameSync(dataDir, renamed);
      const again = await start({ dataDir: renamed });
      expect(await ask(again.url).finally(() => again.stop())).toEqual(before);
    } finally {
      await own.stop().catch(() => {});
      for (const folder of [copy, renamed]) rmSync(folder, { recursive: true, force: true });
    }
  });
});

/** What a file says; empty where it can't be read. */
function readFileOf(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

test('an agent whose data go with it does not say that its id is kept: started again it is another one, with no guest left', () => {
  expect(new AgentDescriber(dataDir, undefined, undefined, true).describe()).toMatchObject({ agent_id_kept: false });
  expect(new AgentDescriber(dataDir).describe()).toMatchObject({ agent_id_kept: true });
});
