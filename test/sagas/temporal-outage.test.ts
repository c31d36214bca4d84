/** The Temporal server goes away while calls wait for their sagas: no call gets an error while its outcome is open. */
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';

let folder: string;
let port: number;
let server: TemporalServer;
let stack: RunningStack;
let client: MooringClient;

async function startTemporal(): Promise<TemporalServer> {
  const { path: binary } = await findTemporalBinary();
  return startTemporalServer({ binary, port, uiPort: null, dbFilename: join(folder, 'temporal.db') });
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mooring-outage-'));
  port = await freePort();
  server = await startTemporal();
  stack = await startStack({
    sleds: 1,
    waitMs: 60_000,
    transitionMs: 10,
    reconcileEveryMs: 0,
    env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: server.address },
  });
  client = new MooringClient({ url: stack.apiUrl });
  await client.createProject({ name: 'default', description: '' });
});
afterAll(async () => {
  await stack?.stop();
  await server?.stop();
  await rm(folder, { recursive: true, force: true });
});

async function startHeldAtRegister(name: string, waitSeconds?: number) {
  const [sled] = stack.sleds;
  const made = await client.createInstance(
    { name, hostname: name, description: '', ncpus: 1, memory: 1024 ** 3, start: false },
    { project: 'default' },
  );
  sled?.agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } });
  const call = client.startInstance(made.id, { waitSeconds });
  call.catch(() => {});
  await waitUntil(async () => (await client.getInstance(made.id)).run_state === 'starting', 'it never began');
  return { id: made.id, call, release: () => sled?.agent.faults.clear() };
}

test('a start whose Temporal server is killed and comes back ends as one success', async () => {
  const held = await startHeldAtRegister('web');
  await server.kill();
  // Its write-ahead journal: what was committed last is there, and nowhere else.
  expect(existsSync(join(folder, 'temporal.db-wal'))).toBe(true);
  held.release();
  server = await startTemporal();
  const { instance } = await held.call;
  expect(['starting', 'running']).toContain(instance.run_state);
  await waitUntil(async () => (await client.getInstance(held.id)).run_state === 'running', 'it never ran');
});

test('a create says that its start could not be begun, and so does its history', async () => {
  await server.kill();
  const created = await client.createInstance(
    {
      name: 'unbegun',
      hostname: 'unbegun',
      description: '',
      ncpus: 1,
      memory: 1024 ** 3,
      auto_restart_policy: 'never',
    },
    { project: 'default' },
  );
  server = await startTemporal();
  expect(created).toMatchObject({
    run_state: 'stopped',
    start_operation_id: expect.any(String),
    start_error: { status: 503, message: expect.stringMatching(/may have begun all the same/) },
  });
  expect(await client.getOperation(created.start_operation_id ?? '')).toMatchObject({
    ...{ state: 'done', outcome: 'failed', error: created.start_error },
  });
  const told = async () => (await client.getInstanceHistory(created.id)).items.map((item) => item.text);
  expect(await told()).toContain(`start failed: ${created.start_error?.message}`);
});

test('a start that may wait no longer while Temporal is away is answered with the operation to follow', async () => {
  const held = await startHeldAtRegister('db', 2);
  await server.kill();
  const { operationId } = await held.call;
  expect(operationId).not.toBeNull();
  held.release();
  server = await startTemporal();
  const operation = await client.waitForOperation(operationId ?? '');
  expect(operation).toMatchObject({ kind: 'start', outcome: 'succeeded' });
});
