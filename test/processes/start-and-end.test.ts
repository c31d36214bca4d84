/** `mooring worker` and `mooring api`: each way in which they can't start ends them, with a sentence; and a signal always does. */
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { openDatabase } from '../../db/connect.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { type RunningCommand, runCommand, startCommand } from '../support/command.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/wait.ts';

let server: TemporalServer;
let database: TestDatabase;
/** Takes connections and says nothing. */
let mute: Server;
let mutePort: number;
const commands: RunningCommand[] = [];
beforeAll(async () => {
  database = await startTestDatabase();
  server = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  mute = createServer((socket) => socket.on('error', () => {}));
  mutePort = await freePort();
  await new Promise<void>((resolve) => mute.listen(mutePort, '127.0.0.1', resolve));
});
afterAll(async () => {
  await Promise.all(commands.map((command) => command.stop()));
  mute?.close();
  await server?.stop();
  await database?.stop();
});

const environment = (env: NodeJS.ProcessEnv = {}) => ({
  DATABASE_URL: database.url,
  TEMPORAL_ADDRESS: server.address,
  MOORING_METRICS_LISTEN: undefined,
  MOORING_BUILD_ID: 'one',
  ...env,
});

function begin(args: readonly string[], env: NodeJS.ProcessEnv = {}): RunningCommand {
  const command = startCommand(args, { env: environment(env) });
  commands.push(command);
  return command;
}

const WORKER = ['worker'];
const API = ['api', '--port', '0', '--authentication', 'open'];
const PROCESSES = { worker: WORKER, api: API };

describe.each(Object.entries(PROCESSES))('%s', (name, args) => {
  test('nobody at the address of Temporal', async () => {
    const { code, stderr } = await runCommand(args, { env: environment({ TEMPORAL_ADDRESS: '127.0.0.1:1' }) });
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/^error: Temporal at 127\.0\.0\.1:1 can't be used .*TEMPORAL_ADDRESS.*$/m),
    ]);
  });

  test('nobody at the address of PostgreSQL', async () => {
    const { code, stderr } = await runCommand(args, {
      env: environment({ DATABASE_URL: 'postgres://x@127.0.0.1:1/z' }),
    });
    expect([code, stderr]).toEqual([1, expect.stringMatching(/^error: .*127\.0\.0\.1:1/m)]);
  });

  test('the address of the metrics is in use', async () => {
    const { code, stderr } = await runCommand([...args, '--metrics', `127.0.0.1:${mutePort}`], { env: environment() });
    expect([code, stderr]).toEqual([1, expect.stringMatching(/^error: 127\.0\.0\.1:\d+ is taken.*--metrics$/m)]);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)('%s while it waits for a PostgreSQL that says nothing', async (signal) => {
    const reached = new Promise<void>((resolve) => mute.once('connection', () => resolve()));
    const command = begin(args, { DATABASE_URL: `postgres://x@127.0.0.1:${mutePort}/z` });
    await reached;
    const { code } = await command.stop(signal);
    expect(code).not.toBe(0);
    expect(command.stdout, name).toBe('');
  });

  test('SIGTERM once it runs', async () => {
    const command = begin(args);
    await command.untilPrinted(name === 'worker' ? /worker: running/ : /API: http/);
    expect((await command.stop('SIGTERM')).code).toBe(0);
  });
});

test('SIGTERM while a whole installation comes up, and waits for a PostgreSQL that says nothing', async () => {
  const reached = new Promise<void>((resolve) => mute.once('connection', () => resolve()));
  const command = begin(['up', '--api-port', '0'], { DATABASE_URL: `postgres://x@127.0.0.1:${mutePort}/z` });
  await reached;
  expect(await command.stop('SIGTERM')).toMatchObject({ code: 143, stdout: '', stderr: '' });
});

test('SIGTERM while a sled agent waits for a QEMU that says nothing', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-mute-qemu-'));
  try {
    const program = join(folder, 'qemu');
    // It ends with whoever asked it: its output leads nowhere then.
    await writeFile(program, `#!/bin/sh\ntouch ${folder}/asked\nwhile echo; do sleep 0.1; done\n`, { mode: 0o755 });
    const address = `127.0.0.1:${await freePort()}`;
    const command = begin(['sled-agent', '--name', 'a', '--address', address, '--hypervisor', 'qemu'], {
      MOORING_QEMU_BINARY: program,
    });
    await eventually(() => existsSync(join(folder, 'asked')), 'QEMU was never asked');
    expect(await command.stop('SIGTERM')).toMatchObject({ code: 0, stdout: '', stderr: '' });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test('a namespace that does not exist: a worker ends, an API is not ready until it does', async () => {
  const env = { TEMPORAL_NAMESPACE: 'elsewhere' };
  const { code, stderr } = await runCommand(WORKER, { env: environment(env) });
  expect([code, stderr]).toEqual([1, expect.stringMatching(/^error: .*has no namespace "elsewhere": create it/m)]);

  const api = begin(API, env);
  const [, url] = await api.untilPrinted(/API: (\S+)/);
  const answer = await fetch(`${url}/readyz`);
  expect([answer.status, await answer.text()]).toEqual([503, expect.stringContaining('no namespace "elsewhere"')]);
  const start = await fetch(`${url}/v1/system/reconcilers/reaper/run`, { method: 'POST' });
  expect(start.status).toBe(503);
  await api.stop();
});

test('what a worker writes to its log is JSON, line by line, also while Temporal is away', async () => {
  const port = await freePort();
  const { path: binary } = await findTemporalBinary();
  let other = await startTemporalServer({ binary, port, uiPort: null });
  const worker = begin(['worker', '--metrics', '127.0.0.1:0'], { TEMPORAL_ADDRESS: other.address });
  const [, url] = await worker.untilPrinted(/metrics at (\S+)\/metrics/);
  await other.kill();
  await eventually(async () => (await fetch(`${url}/readyz`)).status === 503, 'it called itself ready');
  await eventually(() => /"component":"core"/.test(worker.stderr), 'the core of the SDK never said a word');
  other = await startTemporalServer({ binary, port, uiPort: null });
  await eventually(async () => (await fetch(`${url}/readyz`)).status === 200, 'it was never ready again');
  await worker.stop();
  await other.stop();
  for (const line of worker.stderr.split('\n').filter(Boolean)) expect(() => JSON.parse(line), line).not.toThrow();
});

describe('two installations on one namespace', () => {
  const agents: SledAgentHandle[] = [];
  afterAll(() => Promise.all(agents.map((agent) => agent.stop())));

  /** Another database of the same cluster: a copy of the first. */
  async function copyOf(name: string): Promise<string> {
    await database.db.execute(sql`CREATE DATABASE ${sql.identifier(name)} TEMPLATE template0`);
    const url = new URL(database.url);
    url.pathname = `/${name}`;
    return url.href;
  }

  /** An installation that is up: its API's client. */
  async function bringUp(databaseUrl: string): Promise<MooringClient> {
    const worker = begin(WORKER, { DATABASE_URL: databaseUrl });
    await worker.untilPrinted(/worker: running/);
    const api = begin([...API, '--insecure-sleds'], { DATABASE_URL: databaseUrl });
    const [, url] = await api.untilPrinted(/API: (\S+)/);
    const client = new MooringClient({ url: url ?? '' });
    await client.createProject({ name: 'default', description: '' });
    const size = { threads: 64, memoryBytes: 64 * 1024 ** 3 };
    const listen = `127.0.0.1:${await freePort()}`;
    const agent = await startSledAgent({ name: 'sled', listen, controlPlaneUrl: url ?? '', transitionMs: 10, ...size });
    agents.push(agent);
    await client.addSled({ name: 'sled', address: agent.address, threads: size.threads, memory: size.memoryBytes });
    return client;
  }

  test('each does its own work, and a worker of a copy of one of them ends', async () => {
    const otherUrl = await copyOf('other');
    const both = [await bringUp(database.url), await bringUp(otherUrl)];
    const create = (name: string) => ({
      name,
      hostname: name,
      description: '',
      ncpus: 1,
      memory: 1024 ** 3,
      start: true,
    });
    const begun = both.flatMap((client) =>
      Array.from({ length: 8 }, (_, index) => client.createInstance(create(`vm-${index}`), { project: 'default' })),
    );
    for (const { run_state } of await Promise.all(begun)) expect(['starting', 'running']).toContain(run_state);

    const copyUrl = await copyOf('copy');
    const { id } = (await database.db.execute<{ id: string }>(sql`SELECT id FROM installation`)).rows[0] ?? { id: '' };
    await migrateDatabase(copyUrl);
    const copy = openDatabase(copyUrl);
    await copy.db.execute(sql`UPDATE installation SET id = ${id}`);
    for (const args of Object.values(PROCESSES)) {
      const { code, stderr } = await runCommand(args, { env: environment({ DATABASE_URL: copyUrl }) });
      expect([code, stderr]).toEqual([
        1,
        expect.stringMatching(/^error: workers of another database poll the queues/m),
      ]);
    }
    await copy.db.execute(sql`UPDATE installation SET id = DEFAULT`);
    await copy.close();
    await begin(WORKER, { DATABASE_URL: copyUrl }).untilPrinted(/worker: running/);
  });
});
