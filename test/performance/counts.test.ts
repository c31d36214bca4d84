/**
 * What a saga costs whatever the machine: round trips to PostgreSQL, events and workflow tasks in Temporal's history. Each
 * saga is asked for alone, on a stack whose loops are off, so that every one of a kind costs the same. The limits are the
 * targets in docs/performance.md; `npm run bench` measures the rest.
 */
import { randomUUID } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Client, Connection } from '@temporalio/client';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readHistory, roundTripsOf } from '../../bench/measure/counts.ts';
import { COUNT_LIMITS } from '../../bench/report/checks.ts';
import { type PostgresProxy, shortStatement, startPostgresProxy } from '../../bench/system/postgres-proxy.ts';
import { MooringApiError, MooringClient } from '../../client/mooring-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readMigration } from '../../db/queries/read-migration.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';

const CLAIM_ROUND_TRIPS = 3;
/** Each of these must cost the same. */
const SAGAS = 3;
/** How many sagas may be taken again, because the machine had a step not settled at once. */
const DISTURBED = 4;
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
    lookEveryMs: NEVER_MS,
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

/** Waits until no workflow is open: nothing that a saga began is under way any more. */
async function nothingOpen(): Promise<void> {
  let open = -1;
  await waitUntil(
    async () => {
      open = (await temporal.workflow.count('ExecutionStatus = "Running"')).count;
      return open === 0;
    },
    'workflows stay open although every instance is idle',
    60_000,
    50,
  ).catch((error: Error) => {
    throw new Error(`${error.message}: ${open}`);
  });
}

async function running(): Promise<string> {
  const instanceId = await create();
  await client.startInstance(instanceId);
  await runs(instanceId);
  return instanceId;
}

/** One saga that is counted: what it begins with, what it is, what comes after it, and its workflow. */
interface Saga {
  prepare(): Promise<string>;
  act(instanceId: string): Promise<void>;
  after?(instanceId: string): Promise<void>;
  readonly workflowId: (instanceId: string) => string;
}

interface Cost {
  readonly statements: readonly string[];
  readonly events: number;
  readonly workflowTasks: number;
}

/** What one saga costs, and whether a step of it was not settled within the workflow's task, or a task was lost. */
async function costOfOne(saga: Saga): Promise<Cost & { disturbed: boolean }> {
  const instanceId = await saga.prepare();
  await nothingOpen();
  // A workflow that is only about to be begun is neither open nor asking.
  await roundTripsOf(proxy, async () => {});
  await nothingOpen();
  const statements = await roundTripsOf(proxy, () => saga.act(instanceId)).finally(() => holdReports(false));
  await saga.after?.(instanceId);
  await nothingOpen();
  const { events, workflowTasks, activities, lostTasks } = await readHistory(temporal, saga.workflowId(instanceId));
  return { statements, events, workflowTasks, disturbed: activities + lostTasks > 0 };
}

/**
 * What several sagas of a kind cost. One whose step could not be settled at once, or whose task was lost, says how busy the
 * machine is: it is taken again, so often that what always costs too much is found.
 */
async function costs(saga: Saga): Promise<Cost[]> {
  // The first one opens connections and fills caches.
  await costOfOne(saga);
  const found: Cost[] = [];
  for (let again = DISTURBED; found.length < SAGAS; ) {
    const { disturbed, ...cost } = await costOfOne(saga);
    if (disturbed && again > 0) again -= 1;
    else found.push(cost);
  }
  return found;
}

/** Every sled refuses to run a guest, for good. */
async function whileSledsRefuse(act: () => Promise<void>): Promise<void> {
  const refusal = { call: 'state:running', act: { type: 'refuse', status: 409 } } as const;
  const takeAway = stack.sleds.map(({ agent }) => agent.faults.plant(refusal));
  await act().finally(() => {
    for (const one of takeAway) one();
  });
}

function holdReports(on: boolean): void {
  for (const { agent } of stack.sleds) agent.faults.holdReports(on);
}

/** The sled of a stack of two that a running instance is not on. */
async function otherSled(instanceId: string): Promise<string> {
  const record = await readInstance(watch.db, instanceId);
  const other = stack.sleds.find(({ id }) => id !== record?.active?.sledId);
  if (other === undefined) throw new Error('there is no other sled');
  return other.id;
}

const SAGA_OF: Readonly<Record<keyof typeof COUNT_LIMITS, Saga>> = {
  start: {
    prepare: create,
    async act(instanceId) {
      await client.startInstance(instanceId);
      await runs(instanceId);
      await nothingOpen();
    },
    workflowId: workflowIds.start,
  },
  'unwound start': {
    prepare: create,
    async act(instanceId) {
      await whileSledsRefuse(async () => {
        await expect(client.startInstance(instanceId)).rejects.toThrow(MooringApiError);
      });
      await cleared(instanceId);
      await nothingOpen();
    },
    workflowId: workflowIds.start,
  },
  // Until its caller is answered: how many of the sleds' reports come before that would be luck, so that they are held.
  'migration, until accepted': {
    async prepare() {
      const instanceId = await running();
      holdReports(true);
      return instanceId;
    },
    async act(instanceId) {
      await client.migrateInstance(instanceId, await otherSled(instanceId));
      await temporal.workflow.getHandle(workflowIds.migrate(instanceId)).result();
    },
    async after(instanceId) {
      await waitUntil(
        async () => (await readInstance(watch.db, instanceId))?.instance.migrationId === null,
        `instance ${instanceId} never moved`,
      );
    },
    workflowId: workflowIds.migrate,
  },
  update: {
    prepare: running,
    async act(instanceId) {
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
      await cleared(instanceId);
      await nothingOpen();
    },
    workflowId: workflowIds.update,
  },
};

/** Waits until the update saga has cleared the id of an instance's VMM. */
async function cleared(instanceId: string): Promise<void> {
  await waitUntil(
    async () => (await readInstance(watch.db, instanceId))?.instance.activeVmmId === null,
    `the id of instance ${instanceId} was never cleared`,
    60_000,
    10,
  );
}

function explained(statements: readonly string[]): string {
  return [`${statements.length} round trips:`, ...statements.map(shortStatement)].join('\n  ');
}

test(`a claim takes at most ${CLAIM_ROUND_TRIPS} round trips`, async () => {
  const instanceId = await create();
  const through = openDatabase(proxy.url, { maxConnections: 1 });
  try {
    await through.pool.query('SELECT 1');
    const claimed = await roundTripsOf(proxy, () =>
      claimStart(through.db, {
        instanceId,
        vmmId: randomUUID(),
        operationId: randomUUID(),
        workflowId: workflowIds.start(instanceId),
        reason: 'user',
      }),
    );
    expect(claimed.length).toBeGreaterThan(0);
    expect(claimed.length, explained(claimed)).toBeLessThanOrEqual(CLAIM_ROUND_TRIPS);
  } finally {
    await through.close();
  }
});

for (const [kind, limits] of Object.entries(COUNT_LIMITS)) {
  test(`${kind}: at most ${limits.roundTrips} round trips, ${limits.events} events, ${limits.workflowTasks} workflow task, each time the same`, async () => {
    const found = await costs(SAGA_OF[kind as keyof typeof COUNT_LIMITS]);
    for (const { statements, events, workflowTasks } of found) {
      expect(statements.length).toBeGreaterThan(0);
      expect(statements.length, explained(statements)).toBeLessThanOrEqual(limits.roundTrips);
      expect(events).toBeLessThanOrEqual(limits.events);
      expect(workflowTasks).toBeLessThanOrEqual(limits.workflowTasks);
    }
    const counts = found.map((cost) => [cost.statements.length, cost.events, cost.workflowTasks].join(', '));
    expect(new Set(counts).size, found.map(({ statements }) => explained(statements)).join('\n')).toBe(1);
  });
}

test('an idle instance costs no open workflow', async () => {
  await running();
  await nothingOpen();
});

test('what a process asks by itself is not counted, and what else goes over the wire is', async () => {
  const through = openDatabase(proxy.url, { maxConnections: 1 });
  try {
    const asked = await roundTripsOf(proxy, async () => {
      await through.pool.query('LISTEN one; LISTEN another');
      await through.pool.query('SELECT pg_notify($1, $2)', ['one', 'a word']);
      expect(await readMigration(through.db, randomUUID())).toBeNull();
      await through.pool.query('/* simple */ SELECT 1');
      for (const value of [1, 2]) await through.pool.query('/* prepared */ SELECT $1::int', [value]);
      await expect(through.pool.query('/* refused */ SELECT 1 / $1::int', [0])).rejects.toThrow('division by zero');
      await through.pool.query('BEGIN');
      await through.pool.query('COMMIT');
    });
    expect(asked.map(shortStatement)).toEqual(['simple', 'prepared', 'prepared', 'refused', 'BEGIN', 'COMMIT']);
  } finally {
    await through.close();
  }
});

test('what a library polls is learnt by watching it, with all of its transaction', async () => {
  const separate = await startPostgresProxy(postgres.url);
  const through = openDatabase(separate.url, { maxConnections: 1 });
  const poll = async () => {
    for (const text of ['BEGIN READ ONLY', 'SELECT 1', 'COMMIT']) await through.pool.query(text);
  };
  try {
    await through.pool.query('SELECT 0');
    const learn = separate.learnIdleTraffic();
    await poll();
    learn();
    const asked = await roundTripsOf(separate, async () => {
      await poll();
      for (const text of ['BEGIN', 'SELECT 2', 'COMMIT']) await through.pool.query(text);
    });
    expect(asked).toEqual(['BEGIN', 'SELECT 2', 'COMMIT']);
  } finally {
    await Promise.all([through.close(), separate.close()]);
  }
});
