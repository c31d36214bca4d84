/**
 * The authority of an installation is replaced while guests run, by the three commands of docs/install.md: nobody is cut off, nothing
 * ends, and what the former one has signed is refused afterwards, over connections that were open before too.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { bundleFingerprints } from '../../platform/identity/certificates.ts';
import { loadIdentity } from '../../sled-agent/identity-file.ts';
import type { EmbeddedPostgres } from '../../stack/embedded-postgres.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { sledInventory } from '../../wire/sled-protocol.ts';
import { type RunningCommand, runCommand, startCommand } from '../support/command.ts';
import { Caller, Folders, materialOf } from '../support/identities.ts';
import { startTestPostgres } from '../support/postgres-template.ts';
import { loopbackAddress } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const folders = new Folders();
const SLEDS = ['s1', 's2'] as const;
let postgres: EmbeddedPostgres;
let postgresFolder: string;
let temporal: TemporalServer;
let folder: string;
let controlPlane: { api: RunningCommand; worker: RunningCommand } | null = null;
const agents: { name: string; data: string; address: string; process: RunningCommand }[] = [];
let ports: { api: number; sleds: number };
let client: MooringClient;

beforeAll(async () => {
  ({ postgres, directory: postgresFolder } = await startTestPostgres());
  temporal = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  folder = join(await folders.make(), 'authority');
  await mooring('authority', 'create', folder);
  ports = { api: await freePort(), sleds: await freePort() };
  client = new MooringClient({ url: `http://127.0.0.1:${ports.api}` });
  await restart();
  await client.createProject({ name: 'default', description: '' });
  for (const name of SLEDS) {
    const { token } = await client.inviteSled({ name });
    const ip = loopbackAddress();
    const address = `${ip}:${await freePort(ip)}`;
    const data = await folders.make();
    const args = ['sled-agent', 'join', '--token-file', '-', '--data', data, '--address', address];
    const process = startCommand([...args, '--threads', '8', '--memory', '8GiB', '--transition-ms', '20'], {
      input: token,
    });
    await process.untilPrinted(/sled agent "/);
    agents.push({ name, data, address, process });
  }
});
afterAll(async () => {
  for (const { process } of agents) await process.stop();
  await controlPlane?.api.stop();
  await controlPlane?.worker.stop();
  await temporal?.stop();
  await postgres?.stop();
  await rm(postgresFolder, { recursive: true, force: true });
  await folders.close();
});

async function mooring(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runCommand(args);
  if (code !== 0) throw new Error(`mooring ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/** Starts worker and API, or starts them again: they read the authority as they begin. */
async function restart(): Promise<void> {
  await controlPlane?.api.stop();
  await controlPlane?.worker.stop();
  const env = {
    DATABASE_URL: postgres.url,
    TEMPORAL_ADDRESS: temporal.address,
    MOORING_AUTHORITY: folder,
    MOORING_LOG_LEVEL: 'warn',
    MOORING_BUILD_ID: 'one',
  };
  const worker = startCommand(['worker'], { env });
  const listen = ['--port', String(ports.api), '--sled-listen', `127.0.0.1:${ports.sleds}`];
  const api = startCommand(['api', '--authentication', 'open', ...listen], { env });
  controlPlane = { api, worker };
  await Promise.all([worker.untilPrinted(/worker: running/), api.untilPrinted(/API: http/)]);
}

/** The fingerprints of the authorities that a sled trusts, the one that has signed its certificate first. */
async function trustedBy(data: string): Promise<string[]> {
  return bundleFingerprints((await loadIdentity(data))?.authorityPem ?? '');
}

const allTrust = (fingerprints: readonly string[]) =>
  eventually(
    async () =>
      (await Promise.all(agents.map(({ data }) => trustedBy(data)))).every(
        (trusted) => trusted.join() === fingerprints.join(),
      ),
    `not every sled came to trust ${fingerprints.join(', ')}`,
  );

async function running(id: string): Promise<void> {
  await eventually(async () => (await client.getInstance(id)).run_state === 'running', `${id} does not run`);
}

/** A guest moves to the other sled: the control plane commands both, both report, and one asks the other. */
async function moves(id: string): Promise<void> {
  const { sled_id: from } = await client.getInstance(id);
  for await (const sled of client.listSleds()) if (sled.id !== from) await client.migrateInstance(id, sled.id);
  await eventually(async () => {
    const view = await client.getInstance(id);
    return view.run_state === 'running' && view.sled_id !== from && view.migration_target_sled_id === null;
  }, `${id} did not move`);
}

test('an authority is replaced while guests run, and what the former one has signed is refused afterwards', async () => {
  const values = { name: 'web', hostname: 'web', description: '', ncpus: 1, memory: 2 ** 30 };
  const { id } = await client.createInstance(values, { project: 'default' });
  await running(id);
  const first = await Authority.open(folder);
  // Somebody has stolen the key of a process of the control plane, and keeps a connection open.
  const thief = new Caller(await materialOf(first, { kind: 'control_plane' }));
  const asks = async (caller: Caller): Promise<number | string> =>
    caller.call('GET', `https://${agents[0]?.address}/vmms`).then(
      ({ status }) => status,
      // Who has nothing that is good may not even get an answer.
      (error: Error) => error.message,
    );
  expect(await asks(thief)).toBe(200);
  expect(JSON.parse(await mooring('authority', 'show', folder, '--json'))).toMatchObject({
    fingerprint: first.fingerprint,
    also_trusted: [],
  });

  const renewed = JSON.parse(await mooring('authority', 'renew', folder, '--json')) as { also_trusted: string[] };
  const [second = ''] = renewed.also_trusted;
  expect(renewed).toMatchObject({ fingerprint: first.fingerprint, also_trusted: [expect.any(String)] });
  await restart();
  await allTrust([first.fingerprint, second]);
  await moves(id);
  expect(await asks(thief)).toBe(200);

  await mooring('authority', 'switch', folder);
  await restart();
  await allTrust([second, first.fingerprint]);
  await moves(id);
  expect(await asks(thief)).toBe(200);

  await mooring('authority', 'retire', folder);
  await restart();
  await allTrust([second]);
  await moves(id);
  await running(id);
  const again = new Caller(await materialOf(first, { kind: 'control_plane' }));
  expect([401, 403]).toContain(await asks(thief));
  expect(await asks(again)).not.toBe(200);
  await Promise.all([thief.close(), again.close()]);

  // The guest never ended: its sled has one VMM, the other none.
  const found = await Promise.all(
    agents.map(async ({ address }) => {
      const own = new Caller(await materialOf(await Authority.open(folder), { kind: 'control_plane' }));
      const { body } = await own.call('GET', `https://${address}/vmms`);
      await own.close();
      return sledInventory.parse(body).vmms.length;
    }),
  );
  expect(found.sort()).toEqual([0, 1]);
  expect(agents.map(({ process }) => process.child.exitCode)).toEqual([null, null]);
});

describe('the folder of an authority', () => {
  const made = async () => {
    const path = join(await folders.make(), 'authority');
    await Authority.create(path);
    return path;
  };

  test('each step asks for the one before', async () => {
    const path = await made();
    await expect(Authority.switchOver(path)).rejects.toThrow(/has no next authority: "mooring authority renew/);
    await expect(Authority.retire(path)).rejects.toThrow(/trusts no former authority/);
    await Authority.renew(path);
    await expect(Authority.renew(path)).rejects.toThrow(/has a next authority already: "mooring authority switch/);
  });

  test('a switch that was broken off anywhere is done again', async () => {
    const { cp, rename } = await import('node:fs/promises');
    const whole = await made();
    await Authority.renew(whole);
    const before = await Authority.open(whole);
    const [, second] = await bundleFingerprints(before.trustedPem);
    const at = (path: string, file: string) => join(path, file);
    const breaks: ((path: string) => Promise<unknown>)[] = [
      async () => {},
      (path) => cp(at(path, 'authority.crt'), at(path, 'former.crt')),
      async (path) => {
        await cp(at(path, 'authority.crt'), at(path, 'former.crt'));
        await cp(at(path, 'next.crt'), at(path, 'authority.crt'));
      },
      async (path) => {
        await cp(at(path, 'authority.crt'), at(path, 'former.crt'));
        await cp(at(path, 'next.crt'), at(path, 'authority.crt'));
        await rename(at(path, 'next.key'), at(path, 'authority.key'));
      },
    ];
    for (const breakOff of breaks) {
      const path = join(await folders.make(), 'authority');
      await cp(whole, path, { recursive: true });
      await breakOff(path);
      await Authority.switchOver(path);
      const { trustedPem } = await Authority.open(path);
      expect(await bundleFingerprints(trustedPem)).toEqual([second, before.fingerprint]);
    }
  });
});
