/** One host is one sled: the agent is asked who it is, and a sled's address may change while its VMMs stay its own. */
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SledClient } from '../../activities/sled-client.ts';
import { examine } from '../../doctor/examine.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';
import { eventually } from '../support/wait.ts';

const GIB = 2 ** 30;
/** Some containers have no IPv6 at all. */
const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
);
let harness: Harness;
let folder: string;
const sleds = new SledClient();
const ends: (() => Promise<unknown>)[] = [];
beforeAll(async () => {
  harness = await startHarness({ sleds: 1, reconcileEveryMs: 0 });
  folder = mkdtempSync(join(tmpdir(), 'mooring-test-'));
});
afterEach(async () => {
  for (const end of ends.splice(0)) await end();
});
afterAll(async () => {
  await sleds.close();
  await harness?.close();
  rmSync(folder, { recursive: true, force: true });
});

let named = 0;
const name = () => `sled-x${++named}`;

async function startAgent(
  listen: string,
  dataDir?: string,
  controlPlaneUrl = harness.stack.apiUrl,
): Promise<SledAgentHandle> {
  const agent = await startSledAgent({
    name: 'agent',
    listen,
    controlPlaneUrl,
    threads: 8,
    memoryBytes: 8 * GIB,
    transitionMs: 5,
    networkPollMs: 0,
    dataDir,
  });
  ends.push(() => agent.stop());
  return agent;
}

const add = (address: string) => harness.client.addSled({ name: name(), address, threads: 8, memory: 8 * GIB });
const expunge = (sledId: string) =>
  harness.database.db.execute(sql`UPDATE sled SET policy = 'expunged', time_expunged = now() WHERE id = ${sledId}`);

describe('the same agent is one sled', () => {
  test.each([
    [
      'IPv4',
      '127.0.0.1',
      ['127.0.0.1', '127.000.0.01', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', 'localhost', 'LOCALHOST.'],
    ],
    ['IPv6', '[::1]', ['[::1]', '[0:0:0:0:0:0:0:1]', '[0000::0001]', '[::0.0.0.1]', 'localhost']],
    ['a name', 'localhost', ['localhost', 'LocalHost.', '127.0.0.1', '[::1]']],
  ])('listening at %s, in whatever way it is spelled', async (what, host, spellings) => {
    if (what === 'IPv6' && !hasIpv6) return;
    const agent = await startAgent(`${host}:0`, mkdtempSync(join(folder, 'agent-')));
    const port = agent.address.slice(agent.address.lastIndexOf(':') + 1);
    for (const first of spellings) {
      const added = await add(`${first}:${port}`);
      // A name may lead to another one of the addresses that the agent listens at than its own.
      if (added.warning != null) {
        await expunge(added.id);
        continue;
      }
      expect(added).toMatchObject({ silent_since: null, agent: { version: expect.any(String), trouble: [] } });
      for (const other of spellings) {
        const outcome = await add(`${other}:0${port}`).catch((error: unknown) => error);
        if (outcome instanceof Error) expect(outcome.message).toMatch(/already exists|one host is one sled/);
        else {
          expect(outcome).toMatchObject({ warning: expect.stringContaining('no sled agent answers') });
          await expunge((outcome as { id: string }).id);
        }
      }
      await expunge(added.id);
    }
  });

  test('two additions of one agent at once are one sled', async () => {
    const agent = await startAgent('127.0.0.1:0');
    const port = agent.address.split(':')[1];
    const outcomes = await Promise.allSettled(
      ['127.0.0.1', 'localhost', '127.0.0.1'].map((host) => add(`${host}:${port}`)),
    );
    const [added, ...others] = outcomes.filter((outcome) => outcome.status === 'fulfilled');
    expect(others).toEqual([]);
    await expunge(added?.value.id ?? '');
  });
});

test('one host that is added twice before its agent answers takes no VMM as the second sled', async () => {
  const port = await freePort();
  const twins = [await add(`127.0.0.1:${port}`), await add(`localhost:${port}`)];
  expect(twins.map(({ silent_since }) => silent_since)).toEqual([expect.any(String), expect.any(String)]);
  await startAgent(`127.0.0.1:${port}`, mkdtempSync(join(folder, 'twice-')));
  const states = async () => {
    const rows = await Promise.all(twins.map(({ id }) => harness.client.getSled(id)));
    return rows.sort((one, other) => Number(one.silent_since != null) - Number(other.silent_since != null));
  };
  for (let pass = 0; pass < 2; pass++) {
    await harness.reconcile();
    const [own, twin] = await states();
    expect(own).toMatchObject({ silent_since: null, agent: { trouble: [] } });
    expect(twin).toMatchObject({
      silent_since: expect.any(String),
      agent: { trouble: [expect.stringContaining('one host is one sled')] },
    });
    const id = await harness.running({ ncpus: 1 });
    const error = await refused(harness.client.migrateInstance(id, twin?.id ?? ''));
    expect([error.status, error.message]).toEqual([409, expect.stringContaining('takes no instances')]);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  }
  for (const { id } of twins) await expunge(id);
});

describe('who does not say who it is', () => {
  const serve = async (answer: (path: string) => [number, string]): Promise<string> => {
    const server: Server = createServer((request, response) => {
      const [status, body] = answer(request.url ?? '');
      response.writeHead(status, { 'content-type': 'application/json' }).end(body);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    ends.push(() => new Promise((resolve) => server.close(resolve)));
    const address = server.address();
    return `127.0.0.1:${typeof address === 'object' && address !== null ? address.port : 0}`;
  };

  test.each<[string, number, string]>([
    ['404', 404, '{"error_code":"NOT_FOUND"}'],
    ['a page', 404, '<html>'],
    ['501', 501, ''],
    ['nonsense', 200, '{"agent_id":"me"}'],
    ['401', 401, ''],
  ])('an agent that others wrote (%s) is taken', async (_, status, body) => {
    const added = await add(await serve((path) => (path === '/agent' ? [status, body] : [200, '{"vmms":[]}'])));
    expect(added).toMatchObject({ warning: null, silent_since: null, agent: null });
    await expunge(added.id);
  });

  test.each<[string, () => Promise<string>]>([
    ['a web server', () => serve(() => [404, '<html>not found</html>'])],
    ['a portal', () => serve(() => [200, '<html>sign in</html>'])],
    ['a redirect', () => serve(() => [302, ''])],
    ['an answer without a body', () => serve(() => [204, ''])],
    ['a gateway', () => serve(() => [403, '{"message":"Forbidden"}'])],
    ['the API', async () => new URL(harness.stack.apiUrl).host],
  ])('whoever else answers there is no agent: %s', async (_, at) => {
    const address = await at();
    const added = await add(address);
    expect(added).toMatchObject({ warning: expect.stringContaining('no sled agent answers'), last_answered: null });
    expect(added.silent_since).toEqual(expect.any(String));
    await harness.client.runReconciler('watcher');
    expect((await harness.client.getSled(added.id)).silent_since).toEqual(expect.any(String));
    await expunge(added.id);
    // Nor is it one at the address to which a sled moves.
    const moving = await add(`127.0.0.1:${await freePort()}`);
    const moved = await harness.client.setSledAddress(moving.id, address);
    expect(moved).toMatchObject({ warning: expect.stringContaining('no sled agent answers'), last_answered: null });
    await expunge(moving.id);
  });

  test('an address that nobody answers is added with a warning, and counts as silent', async () => {
    const added = await add(`127.0.0.1:${await freePort()}`);
    expect(added.warning).toContain('no sled agent answers');
    expect(added.silent_since).toEqual(expect.any(String));
    await expunge(added.id);
  });

  test('what is the address of no host is refused, and says why', async () => {
    for (const address of ['0.0.0.0:8099', '999.1.1.1:8099', '[ff02::1]:8099', '127.0.0.1:0', 'sled_7:8099']) {
      const error = await refused(add(address));
      expect([error.status, error.message]).toEqual([400, expect.stringMatching(/address/)]);
    }
  });
});

describe('a sled whose address changes', () => {
  test('is refused while its agent answers where it was; then its VMMs are found at the new one', async () => {
    const dataDir = mkdtempSync(join(folder, 'moving-'));
    const before = await startAgent('127.0.0.1:0', dataDir);
    const { id: sledId } = await add(before.address);
    const [other] = harness.stack.sleds;
    await harness.client.setSledPolicy(other?.id ?? '', 'non_provisionable');
    const id = await harness.running({ ncpus: 1 });
    await harness.client.setSledPolicy(other?.id ?? '', 'provisionable');
    const port = before.address.split(':')[1];

    expect((await refused(harness.client.setSledAddress(sledId, `127.0.0.2:${port}`))).status).toBe(409);
    await before.stop();
    // Nobody is there yet: nothing proves that it is the same host.
    expect((await refused(harness.client.setSledAddress(sledId, `127.0.0.2:${port}`))).status).toBe(409);
    // Another agent is there.
    const stranger = await startAgent('127.0.0.3:0');
    expect((await refused(harness.client.setSledAddress(sledId, stranger.address))).status).toBe(409);
    // The address of another sled, and its agent at another one.
    expect((await refused(harness.client.setSledAddress(sledId, other?.agent.address ?? ''))).status).toBeLessThan(500);

    // It reports nothing before it is asked: its guest's end would come before the move.
    const after = await startAgent(`127.0.0.2:${port}`, dataDir, 'http://127.0.0.1:9');
    const moved = await harness.client.setSledAddress(sledId, `127.0.0.02:0${port}`);
    expect(moved).toMatchObject({ address: after.address, silent_since: null, warning: null });
    const { rows } = await harness.database.db.execute(sql`
      SELECT vmm.ip, network.ip AS network FROM vmm LEFT JOIN instance_network network ON network.vmm_id = vmm.id
      WHERE vmm.sled_id = ${sledId} AND vmm.time_deleted IS NULL`);
    expect(rows).toEqual([{ ip: '127.0.0.2', network: '127.0.0.2' }]);
    // Simulated guests end with their agent: it says so from where it is now, and the control plane hears it.
    await harness.reconcile();
    await harness.shows(id, 'failed');
    await harness.rests(id);

    await after.stop();
    await startAgent(after.address, dataDir);
    const again = await harness.running({ ncpus: 1 });
    await harness.client.stopInstance(again);
    await harness.shows(again, 'stopped');
    await expunge(sledId);
  });

  test('is not moved to a copy of its agent that lacks its VMs, but on the operator’s word', async () => {
    const dataDir = mkdtempSync(join(folder, 'moving-'));
    const before = await startAgent('127.0.0.1:0', dataDir);
    const { id: sledId, name: sledName } = await add(before.address);
    const [other] = harness.stack.sleds;
    await harness.client.setSledPolicy(other?.id ?? '', 'non_provisionable');
    const id = await harness.running({ ncpus: 1, auto_restart_policy: 'never' });
    await harness.client.setSledPolicy(other?.id ?? '', 'provisionable');
    const vmmId = (await harness.record(id)).active?.id ?? '';
    // As when a machine is restored from an image that was taken before.
    const copy = mkdtempSync(join(folder, 'copy-'));
    copyFileSync(join(dataDir, 'agent-id'), join(copy, 'agent-id'));
    const restored = await startAgent('127.0.0.2:0', copy);
    const word = { sled_powered_off: true };
    const refusal = async (given = {}) => refused(harness.client.setSledAddress(sledId, restored.address, given));
    expect(await refusal(word)).toMatchObject({ status: 409, message: expect.stringContaining('answers at') });
    await before.kill();
    const { status, message } = await refusal();
    expect([status, message.includes(vmmId)]).toEqual([409, true]);
    expect(message).toMatch(/does not have VMM .*instance.*sled_powered_off: true/);
    expect((await harness.record(id)).active?.id).toBe(vmmId);

    const { code, stdout } = await runCommand([
      ...['sled', 'set-address', sledName, restored.address, '--sled-powered-off'],
      ...['--api-url', harness.stack.apiUrl, '--json'],
    ]);
    expect([code, JSON.parse(stdout).address]).toEqual([0, restored.address]);
    await harness.client.runReconciler('watcher');
    await harness.shows(id, 'failed');
    await harness.rests(id);
    await expunge(sledId);
  });

  test('is found there by a command that was on its way', async () => {
    const dataDir = mkdtempSync(join(folder, 'moving-'));
    const before = await startAgent('127.0.0.1:0', dataDir);
    const { id: sledId } = await add(before.address);
    const [other] = harness.stack.sleds;
    await harness.client.setSledPolicy(other?.id ?? '', 'non_provisionable');
    const id = await harness.create();
    before.faults.plant({ call: 'state:running', act: { type: 'drop_before' } });
    const started = refused(harness.client.startInstance(id));
    await eventually(async () => {
      const { rows } = await harness.database.db.execute(
        sql`SELECT 1 FROM vmm WHERE instance_id = ${id} AND commanded_at IS NOT NULL`,
      );
      return rows.length > 0;
    }, 'its sled was never about to be commanded');
    await before.stop();
    const after = await startAgent('127.0.0.2:0', dataDir);
    await harness.client.setSledAddress(sledId, after.address);
    // The agent that was started anew knows the VMM, whose process it has lost: it says so, and the start ends.
    expect((await started).status).toBe(503);
    // Its report may be quicker than the saga.
    expect(['stopped', 'failed']).toContain((await harness.record(id)).externalState);
    await harness.client.setSledPolicy(other?.id ?? '', 'provisionable');
    await expunge(sledId);
  });
});

describe('another machine at a sled’s address, with an agent of its own', () => {
  let sledId: string;
  let sledName: string;
  let id: string;
  let own: SledAgentHandle;
  let ownData: string;
  let stranger: SledAgentHandle;
  const elsewhere = () => harness.stack.sleds[0]?.id ?? '';

  /** A sled on which an instance runs loses its address, as when a machine that was off is gone from it, to another one. */
  beforeEach(async () => {
    ownData = mkdtempSync(join(folder, 'own-'));
    own = await startAgent('127.0.0.1:0', ownData);
    ({ id: sledId, name: sledName } = await add(own.address));
    await harness.client.setSledPolicy(elsewhere(), 'non_provisionable');
    id = await harness.running({ ncpus: 1, auto_restart_policy: 'never' });
    expect((await harness.record(id)).active?.sledId).toBe(sledId);
    await harness.client.setSledPolicy(elsewhere(), 'provisionable');
    await own.kill();
    stranger = await startAgent(own.address, mkdtempSync(join(folder, 'stranger-')));
  });

  test('makes nothing lost, whoever asks it, and is named as what ails the sled', async () => {
    const before = await harness.record(id);
    const unharmed = async () => expect((await harness.record(id)).active).toEqual(before.active);
    expect(await refused(harness.client.rebootInstance(id))).toMatchObject({
      status: 503,
      message: expect.stringContaining('is not that of sled'),
    });
    await unharmed();
    for (let pass = 0; pass < 2; pass++)
      for (const loop of ['watcher', 'updater', 'fencing'] as const) await harness.client.runReconciler(loop);
    await unharmed();
    expect(await harness.client.getSled(sledId)).toMatchObject({
      silent_since: expect.any(String),
      agent: { trouble: [expect.stringContaining(`another agent`)] },
    });
    const { stdout } = await runCommand(['sled', 'list', '--api-url', harness.stack.apiUrl]);
    expect(stdout).toMatch(new RegExp(`${sledName}.*silent`));
    const { checked } = await examine({ db: harness.database.db, sleds, atRest: false });
    expect(checked.silentSleds).toContain(sledName);
    expect(checked.notes).toEqual([expect.stringMatching(new RegExp(`another.*|not that of sled "${sledName}"`))]);

    await harness.client.stopInstance(id);
    await eventually(async () => {
      const { rows } = await harness.database.db.execute(sql`SELECT intended_state FROM instance WHERE id = ${id}`);
      return rows[0]?.intended_state === 'stopped';
    }, 'the stop was never recorded');
    await harness.client.runReconciler('updater');
    await unharmed();

    // Its own agent comes back where it was: it is believed, and has lost what it simulated.
    await stranger.stop();
    await startAgent(own.address, ownData);
    await eventually(async () => {
      await harness.client.runReconciler('watcher');
      return (await harness.record(id)).externalState === 'stopped';
    }, 'the stop was never carried out');
    expect(await harness.client.getSled(sledId)).toMatchObject({ silent_since: null, agent: { trouble: [] } });
    await expunge(sledId);
  });

  test.each(['force-stop', 'declare-dead', 'expunge'] as const)(
    'does not keep the operator’s word from being taken that the sled is off: %s',
    async (word) => {
      await harness.client.runReconciler('watcher');
      if (word === 'force-stop') await harness.client.forceStopInstance(id, { sled_powered_off: true });
      if (word === 'declare-dead') await harness.client.declareSledDead(sledId, { sled_powered_off: true });
      if (word === 'expunge') await harness.client.expungeSled(sledId, { sled_powered_off: true });
      await harness.shows(id, word === 'force-stop' ? 'stopped' : 'failed');
      await harness.rests(id);
      if (word === 'expunge') return;
      // Nothing of the sled's own lives there any more: it is the sled's agent from now on.
      await harness.client.runReconciler('watcher');
      await harness.client.runReconciler('fencing');
      expect(await harness.client.getSled(sledId)).toMatchObject({ silent_since: null, agent: { trouble: [] } });
      await harness.client.setSledPolicy(elsewhere(), 'non_provisionable');
      const again = await harness.running({ ncpus: 1 });
      expect((await harness.record(again)).active?.sledId).toBe(sledId);
      await harness.client.setSledPolicy(elsewhere(), 'provisionable');
      await harness.client.stopInstance(again);
      await harness.shows(again, 'stopped');
      await expunge(sledId);
    },
  );
});

test.skipIf(!hasIpv6)('migrations go between sleds at IPv4 and IPv6 addresses and at names', async () => {
  const agents = await Promise.all(['127.0.0.1:0', '[::1]:0', 'localhost:0'].map((listen) => startAgent(listen)));
  const sleds = [];
  for (const agent of agents) sleds.push(await add(agent.address));
  expect(sleds.map((sled) => sled.warning)).toEqual([null, null, null]);
  const [first] = harness.stack.sleds;
  await harness.client.setSledPolicy(first?.id ?? '', 'non_provisionable');
  const id = await harness.running({ ncpus: 1 });
  for (const sled of [...sleds, ...sleds]) {
    if ((await harness.record(id)).active?.sledId === sled.id) continue;
    await harness.client.migrateInstance(id, sled.id);
    await harness.shows(id, 'running');
    await harness.rests(id);
    expect((await harness.record(id)).active?.sledId).toBe(sled.id);
  }
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.client.setSledPolicy(first?.id ?? '', 'provisionable');
  for (const { id: sledId } of sleds) await expunge(sledId);
});
