/** The doctor on a real stack: content while it is busy, and not when a sled or Temporal has what it should not. */

import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { SledClient } from '../../activities/sled-client.ts';
import { examine } from '../../doctor/examine.ts';
import { RECONCILERS } from '../../model/reconcilers.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { readStackFile, writeStackFile } from '../../stack/stack-file.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, startHarness } from '../support/harness.ts';

let harness: Harness;
let stateHome: string;
const sleds = new SledClient();
beforeAll(async () => {
  stateHome = await mkdtemp(join(tmpdir(), 'mooring-state-'));
  harness = await startHarness({ reconcilersOff: RECONCILERS, env: { XDG_STATE_HOME: stateHome } });
});
afterEach(() => harness.everywhere(({ agent }) => agent.faults.clear()));
afterAll(async () => {
  await sleds.close();
  await harness?.close();
  expect(await readdir(join(stateHome, 'mooring'))).toEqual([]);
  await rm(stateHome, { recursive: true, force: true });
});

async function look(atRest: boolean) {
  const { findings } = await examine({ db: harness.database.db, temporal: harness.temporal, sleds, atRest });
  return findings.map(({ invariant, rule, instanceId }) => ({ invariant, rule, instanceId }));
}

const mooring = (...args: string[]) =>
  runCommand(args, { env: { XDG_STATE_HOME: stateHome, DATABASE_URL: '', TEMPORAL_ADDRESS: '' } });

test('a busy stack has no finding at any moment, and none at all when it has come to rest', async () => {
  const ids = await Promise.all(Array.from({ length: 8 }, () => harness.create()));
  let working = true;
  const looks: Promise<number> = (async () => {
    let count = 0;
    for (; working; count++) await harness.examined(false);
    return count;
  })();
  const lives = ids.map(async (id, index) => {
    for (let round = 0; round < 2; round++) {
      if (index % 4 === 3) {
        harness.everywhere(({ agent }) =>
          agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 }, times: 1 }),
        );
      }
      const started = await harness.client.startInstance(id).then(
        () => true,
        () => false,
      );
      if (!started) continue;
      await harness.shows(id, 'running');
      const { there } = await harness.placed(id);
      if (index % 2 === 0) {
        await harness.client.migrateInstance(id, there.id);
        await waitUntil(async () => (await harness.record(id)).active?.sledId === there.id, `${id} never moved`);
        await harness.shows(id, 'running');
      } else await harness.client.rebootInstance(id);
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopped');
    }
  });
  await Promise.all(lives).finally(() => {
    working = false;
  });
  expect(await looks).toBeGreaterThan(3);
  await harness.reconcile();
  const { checked } = await harness.examined(true);
  expect(checked).toMatchObject({ journal: true, temporal: true, sleds: 3, silentSleds: [] });
});

test('a second guest of an instance is found, as a stranger on its sled too', async () => {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  const stranger = randomUUID();
  const address = there.agent.address;
  const sled = { name: there.name, address, keptAgentId: null };
  const ip = address.slice(0, address.lastIndexOf(':'));
  await sleds.register(
    sled,
    stranger,
    {
      instance_id: id,
      vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'twin', ncpus: 1, memory_bytes: 1024 ** 3 },
      vmm_addr: `${ip}:33001`,
    },
    5_000,
  );
  await sleds.setState(sled, stranger, { type: 'running' }, 5_000);
  await waitUntil(
    async () => (await sleds.readState(sled, stranger, 5_000)).vmm_state.state === 'running',
    'it never ran',
  );
  expect(await look(false)).toEqual([{ invariant: 4, rule: 'one guest at a time', instanceId: id }]);
  await expect(harness.examined(false)).rejects.toThrow(/one guest at a time.*runs twice/);
  expect(await look(true)).toContainEqual({ invariant: 8, rule: 'no stranger on a sled', instanceId: id });
  there.agent.faults.lose(stranger);
  expect((await look(true)).filter(({ instanceId }) => instanceId === id)).toEqual([]);
});

test('a VMM that its sled has lost is found, at rest only', async () => {
  const id = await harness.running();
  const { active } = await harness.record(id);
  (await harness.placed(id)).here.agent.faults.lose(active?.id ?? '');
  expect((await look(false)).filter(({ rule }) => rule !== 'one guest at a time')).toEqual([]);
  expect(await look(true)).toContainEqual({ invariant: 8, rule: 'every VMM on its sled', instanceId: id });
  await harness.reconcile();
  await harness.shows(id, 'failed');
  await waitUntil(async () => (await look(true)).every(({ instanceId }) => instanceId !== id), 'it never came to rest');
});

test('an open workflow of an instance is found at rest, until it ends', async () => {
  const id = await harness.create();
  const handle = await harness.temporal.workflow.start('instanceUpdate', {
    workflowId: workflowIds.update(id),
    taskQueue: 'nobody-works-here',
    args: [{ instanceId: id }],
  });
  const open = { invariant: 8, rule: 'no workflow open', instanceId: id };
  // The list of open workflows lags behind by a moment.
  await waitUntil(async () => (await look(true)).some(({ rule }) => rule === open.rule), 'it was never found');
  expect(await look(true)).toContainEqual(open);
  expect((await look(false)).map(({ rule }) => rule)).not.toContain(open.rule);
  await handle.terminate();
  expect((await look(true)).map(({ rule }) => rule)).not.toContain(open.rule);
});

test('the command says what it checked and exits 0; with a finding it prints its line and exits 1', async () => {
  const good = await mooring('doctor', '--at-rest', '--api-url', harness.stack.apiUrl);
  expect(good.stderr).toBe('');
  expect(good.stdout).toMatch(
    /nothing is wrong: checked \d+ rules on \d+ instances and \d+ VMMs, 3 sleds, Temporal, the journal/,
  );
  expect(good.code).toBe(0);

  await harness.database.db.execute(sql`UPDATE sled SET reserved_threads = reserved_threads + 1 WHERE name = 'sled-1'`);
  const bad = await mooring('doctor', '--api-url', harness.stack.apiUrl);
  expect(bad.stdout).toMatch(/^ 1 {2}sled sums {2}sled sled-1 says that/m);
  expect(bad.stdout).toContain('1 finding, on invariant 1');
  expect(bad.code).toBe(1);
  const json = await mooring('doctor', '--json', '--api-url', harness.stack.apiUrl);
  expect(json.code).toBe(1);
  expect(JSON.parse(json.stdout)).toMatchObject({
    findings: [{ invariant: 1, rule: 'sled sums', instance_id: null }],
    checked: { at_rest: false },
  });
  await harness.database.db.execute(sql`UPDATE sled SET reserved_threads = reserved_threads - 1 WHERE name = 'sled-1'`);
});

test('without a stack on that port the command says where it looked and what to set', async () => {
  const { code, stderr } = await mooring('doctor', '--api-url', 'http://127.0.0.1:1');
  expect(code).toBe(1);
  expect(stderr).toMatch(
    /no stack with its API at http:\/\/127\.0\.0\.1:1 runs on this machine.*--api-url.*DATABASE_URL/,
  );
});

test('the stack file is its owner’s alone; one whose process is gone counts for nothing', async () => {
  const { port } = new URL(harness.stack.apiUrl);
  const file = join(stateHome, 'mooring', `stack-${port}.json`);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  const env = { XDG_STATE_HOME: stateHome };
  expect(await readStackFile(harness.stack.apiUrl, env)).toMatchObject({
    api_url: harness.stack.apiUrl,
    database_url: harness.stack.databaseUrl,
    pid: process.pid,
  });
  expect(await readStackFile(`http://example.com:${port}`, env)).toBeNull();

  const gone = spawn(process.execPath, ['--version'], { stdio: 'ignore' });
  await new Promise((resolve) => gone.once('exit', resolve));
  const other = join(stateHome, 'mooring', 'stack-1.json');
  const stale = { ...JSON.parse(await readFile(file, 'utf8')), api_url: 'http://127.0.0.1:1', pid: gone.pid };
  await writeFile(other, JSON.stringify(stale));
  expect(await readStackFile('http://127.0.0.1:1', env)).toBeNull();
  const { pid: _, ...mine } = stale;
  const remove = await writeStackFile({ ...mine, api_url: 'http://127.0.0.1:2' }, env);
  expect((await readdir(join(stateHome, 'mooring'))).sort()).toEqual([`stack-${port}.json`, 'stack-2.json'].sort());
  await remove();
});
