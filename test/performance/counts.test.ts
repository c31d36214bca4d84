/**
 * What a saga costs whatever the machine: round trips to PostgreSQL and events in Temporal's history. The limits are the
 * targets in docs/performance.md; `npm run bench` measures the rest.
 */
import { randomUUID } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Client, Connection } from '@temporalio/client';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type PostgresProxy, startPostgresProxy } from '../../bench/system/postgres-proxy.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';

const CLAIM_ROUND_TRIPS = 3;
const START_ROUND_TRIPS = 12;
const START_EVENTS = 25;
const UPDATE_EVENTS = 15;
/** No loop of the stack asks anything by itself meanwhile. */
const NEVER_MS = 3_600_000;

let directory: string;
let postgres: EmbeddedPostgres;
let proxy: PostgresProxy;
let stack: RunningStack;
let client: MooringClient;
let connection: Connection;
let temporal: Client;
/** Looks on, past the proxy. */
let watch: OpenDatabase;

beforeAll(async () => {
  directory = await mkdtemp('/var/tmp/mooring-counts-');
  await chmod(directory, 0o711);
  postgres = await startEmbeddedPostgres({ dataDir: join(directory, 'postgres'), durable: false });
  proxy = await startPostgresProxy(postgres.url);
  watch = openDatabase(postgres.url, { maxConnections: 2 });
  stack = await startStack({
    sleds: 2,
    transitionMs: 10,
    reconcileEveryMs: 0,
    leaseBeatMs: 0,
    networkPollMs: NEVER_MS,
    env: { ...process.env, DATABASE_URL: proxy.url, TEMPORAL_ADDRESS: '' },
  });
  client = new MooringClient({ url: stack.apiUrl });
  await client.createProject({ name: 'default', description: '' });
  connection = await Connection.connect({ address: stack.temporalAddress });
  temporal = new Client({ connection });
});

afterAll(async () => {
  await Promise.allSettled([connection?.close(), watch?.close()]);
  await stack?.stop();
  await proxy?.close();
  await postgres?.stop();
  await rm(directory, { recursive: true, force: true });
});

async function create(): Promise<string> {
  const name = `vm-${randomUUID().slice(0, 8)}`;
  const size = { ncpus: 2, memory: 1024 ** 3 };
  const made = await client.createInstance(
    { name, hostname: name, description: '', ...size, start: false },
    { project: 'default' },
  );
  return made.id;
}

/** Waits until an instance's VMM is what its sled last says of a start: running. */
async function runs(instanceId: string): Promise<void> {
  await waitUntil(
    async () => (await readInstance(watch.db, instanceId))?.externalState === 'running',
    `instance ${instanceId} never ran`,
    60_000,
    10,
  );
}

async function events(workflowId: string): Promise<number> {
  return Number((await temporal.workflow.getHandle(workflowId).describe()).historyLength);
}

/** The round trips of `act`, when nothing is under way any more: the count stands still. */
async function roundTrips(act: () => Promise<unknown>): Promise<number> {
  await still();
  const before = proxy.counts().roundTrips;
  await act();
  return (await still()) - before;
}

async function still(): Promise<number> {
  let last = -1;
  await waitUntil(
    () => {
      const now = proxy.counts().roundTrips;
      const same = now === last;
      last = now;
      return same;
    },
    'something goes on asking the database',
    60_000,
    400,
  );
  return last;
}

test(`a claim takes at most ${CLAIM_ROUND_TRIPS} round trips`, async () => {
  const instanceId = await create();
  const through = openDatabase(proxy.url, { maxConnections: 1 });
  try {
    await through.pool.query('SELECT 1');
    const claimed = await roundTrips(() =>
      claimStart(through.db, {
        instanceId,
        vmmId: randomUUID(),
        operationId: randomUUID(),
        workflowId: workflowIds.start(instanceId),
        reason: 'user',
      }),
    );
    expect(claimed).toBeGreaterThan(0);
    expect(claimed).toBeLessThanOrEqual(CLAIM_ROUND_TRIPS);
  } finally {
    await through.close();
  }
});

test(`a start takes at most ${START_ROUND_TRIPS} round trips, the API's reads and the sled's reports included`, async () => {
  const first = await create();
  await client.startInstance(first);
  await runs(first);
  const instanceId = await create();
  const all = await roundTrips(async () => {
    await client.startInstance(instanceId);
    await runs(instanceId);
  });
  expect(all).toBeGreaterThan(CLAIM_ROUND_TRIPS);
  expect(all).toBeLessThanOrEqual(START_ROUND_TRIPS);
});

test(`a start leaves at most ${START_EVENTS} events in its history`, async () => {
  const instanceId = await create();
  await client.startInstance(instanceId);
  expect(await events(workflowIds.start(instanceId))).toBeLessThanOrEqual(START_EVENTS);
});

test(`an update leaves at most ${UPDATE_EVENTS} events in its history`, async () => {
  const instanceId = await create();
  await client.startInstance(instanceId);
  await runs(instanceId);
  const record = await readInstance(watch.db, instanceId);
  const report = await fetch(`${stack.apiUrl}/vmms/${record?.active?.id}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      vmm_state: {
        state: 'destroyed',
        gen: (record?.active?.stateGeneration ?? 0) + 1,
        time_updated: new Date().toISOString(),
      },
    }),
  });
  expect(report.status).toBe(204);
  await temporal.workflow.getHandle(workflowIds.update(instanceId)).result();
  expect((await readInstance(watch.db, instanceId))?.instance.activeVmmId).toBeNull();
  expect(await events(workflowIds.update(instanceId))).toBeLessThanOrEqual(UPDATE_EVENTS);
});

test('an idle instance costs no open workflow', async () => {
  const instanceId = await create();
  await client.startInstance(instanceId);
  await runs(instanceId);
  let open = -1;
  await waitUntil(
    async () => {
      open = (await temporal.workflow.count('ExecutionStatus = "Running"')).count;
      return open === 0;
    },
    'workflows stay open although every instance is idle',
    60_000,
    200,
  ).catch((error: Error) => {
    throw new Error(`${error.message}: ${open}`);
  });
  expect(open).toBe(0);
});
