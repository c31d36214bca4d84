/**
 * How the queries grow: the same operations with 1,000, 10,000 and 50,000 instances in the database, and placement with
 * 10, 100 and 1,000 sleds. Four fifths of the instances run. No Temporal server takes part: what is measured is what the
 * database and the loops over it cost.
 */
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { MockActivityEnvironment } from '@temporalio/testing';
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import type { ActivityContext } from '../activities/context.ts';
import { createReconcilerActivities } from '../activities/reconcilers.ts';
import { SledClient } from '../activities/sled-client.ts';
import { openDatabase, type Queryable } from '../db/connect.ts';
import { findOpenOperations } from '../db/queries/find-open-operations.ts';
import { findUpdateCandidates } from '../db/queries/find-update-candidates.ts';
import { listInstances } from '../db/queries/list-instances.ts';
import { pickSled } from '../db/queries/pick-sled.ts';
import * as schema from '../db/schema.ts';
import { claimStart } from '../db/transactions/claim-start.ts';
import { commitUpdate } from '../db/transactions/commit-update.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import { median } from './report/statistics.ts';
import type { Arena } from './system/arena.ts';

export interface ScaleRow {
  readonly instances: number;
  readonly sleds: number;
  /** Median milliseconds of each operation, by its name. */
  readonly ms: Readonly<Record<string, number>>;
}

export interface ScaleResult {
  readonly byInstances: readonly ScaleRow[];
  readonly bySleds: readonly ScaleRow[];
  /** `EXPLAIN (ANALYZE)` of every statement at the largest size, by operation. */
  readonly plans: Readonly<Record<string, string>>;
}

export const SCALE_SIZES = { instances: [1_000, 10_000, 50_000], sleds: [10, 100, 1_000] } as const;
const SLEDS_OF_INSTANCES = 100;
const REPEATS = 15;

/** Measures every operation at every size. */
export async function measureScale(
  arena: Arena,
  sizes: { instances: readonly number[]; sleds: readonly number[] },
  print: (line: string) => void,
): Promise<ScaleResult> {
  const byInstances: ScaleRow[] = [];
  let plans: Record<string, string> = {};
  for (const instances of sizes.instances) {
    print(`scale: ${instances} instances`);
    const measured = await measureSize(arena, instances, SLEDS_OF_INSTANCES, true);
    byInstances.push(measured.row);
    plans = measured.plans;
  }
  const bySleds: ScaleRow[] = [];
  for (const sleds of sizes.sleds) {
    print(`scale: ${sleds} sleds`);
    const { row, plans: more } = await measureSize(arena, 1_000, sleds, false);
    bySleds.push(row);
    plans = { ...more, ...plans, placement: more.placement ?? '' };
  }
  return { byInstances, bySleds, plans };
}

async function measureSize(arena: Arena, instances: number, sleds: number, everything: boolean) {
  const agents = await startInventoryServer();
  const addresses = Array.from({ length: sleds }, (_, n) => `127.64.${n >> 8}.${n & 255}:${agents.port}`);
  const url = await arena.newDatabase(addresses);
  const database = openDatabase(url, { maxConnections: 20 });
  // Without the time limit of Mooring's own statements.
  const watch = new pg.Pool({ connectionString: url, max: 1 });
  watch.on('error', () => {});
  const sledClient = new SledClient();
  try {
    await seed(watch, instances);
    await agents.load(watch);
    const { db } = database;
    const stopped = (
      await watch.query<{ id: string }>(`SELECT id FROM instance WHERE state = 'no_vmm' ORDER BY id LIMIT $1`, [
        3 * REPEATS,
      ])
    ).rows.map((row) => row.id);
    const running = (
      await watch.query<{ id: string; active: string }>(
        `SELECT id, active_vmm_id AS active FROM instance WHERE state = 'vmm' ORDER BY id LIMIT $1`,
        [3 * REPEATS],
      )
    ).rows;
    const projectId = (await watch.query<{ id: string }>('SELECT id FROM project')).rows[0]?.id ?? '';
    const middle = `vm-${String(Math.floor(instances / 2)).padStart(7, '0')}`;
    const page = { projectId, order: 'name_ascending', limit: 100 } as const;
    const reconcilers = createReconcilerActivities({
      db,
      sleds: sledClient,
      // Nothing is amiss in this database, so that nothing is signalled.
      workflows: {} as WorkflowStarter,
    } satisfies ActivityContext);

    const operations: Record<string, (turn: number) => Promise<unknown>> = {
      placement: () => placeOne(db),
      'claim of a start': (turn) =>
        claimStart(db, {
          instanceId: stopped[turn] ?? '',
          vmmId: randomUUID(),
          operationId: randomUUID(),
          workflowId: 'bench',
          reason: 'user',
        }),
      ...(everything
        ? {
            'list, first page': () => listInstances(db, { ...page, after: null }),
            'list, page in the middle': () => listInstances(db, { ...page, after: middle }),
            'list of the failed': () => listInstances(db, { ...page, externalState: 'failed', after: null }),
            'list of one sled': async () => listInstances(db, { ...page, sledId: agents.sledId(), after: null }),
            'update of one instance': async (turn: number) => {
              const { id, active } = running[turn] ?? { id: '', active: '' };
              await watch.query(
                `UPDATE vmm SET state = 'destroyed', state_generation = state_generation + 1 WHERE id = $1`,
                [active],
              );
              return timed(() => commitUpdate(db, id));
            },
            'updater scan: candidates': () => findUpdateCandidates(db),
            'updater scan: open operations': () => findOpenOperations(db, 5_000),
          }
        : {}),
    };
    const ms: Record<string, number> = {};
    for (const [name, operation] of Object.entries(operations)) {
      const times: number[] = [];
      for (let turn = 0; turn < REPEATS + 2; turn++) {
        const began = performance.now();
        const own = await operation(turn);
        // The first two warm caches up.
        if (turn >= 2) times.push(typeof own === 'number' ? own : performance.now() - began);
      }
      ms[name] = median(times);
    }
    if (everything) {
      await agents.load(watch);
      const rounds: number[] = [];
      for (let turn = 0; turn < 3; turn++) {
        rounds.push(await timed(() => new MockActivityEnvironment().run(() => reconcilers.watchSleds())));
      }
      ms['watcher’s round'] = median(rounds);
    }
    const plans = await explainAll(url, projectId, middle, agents.sledId());
    return { row: { instances, sleds, ms }, plans };
  } finally {
    await Promise.allSettled([database.close(), watch.end(), sledClient.close(), agents.close()]);
    await arena.dropDatabase(url);
  }
}

async function timed(act: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await act();
  return performance.now() - began;
}

/** Asks for a place for an instance of 2 CPUs and 1 GiB that is in no group. */
const placeOne = (db: Queryable) => pickSled(db, { instanceId: randomUUID(), ncpus: 2, memoryBytes: 1024 ** 3 });

/** Instances of which four fifths run, spread over the sleds, with all that they hold. */
async function seed(pool: pg.Pool, count: number): Promise<void> {
  await pool.query(
    `WITH places AS (SELECT id, split_part(address, ':', 1) AS ip, row_number() OVER (ORDER BY address) - 1 AS n, count(*) OVER () AS total FROM sled),
      wanted AS (SELECT n, gen_random_uuid() AS instance_id, gen_random_uuid() AS vmm_id, n % 5 <> 0 AS runs FROM generate_series(1, $1) n),
      made AS (
        INSERT INTO instance (id, project_id, name, description, hostname, ncpus, memory_bytes, state, intended_state)
        SELECT instance_id, (SELECT id FROM project), 'vm-' || lpad(n::text, 7, '0'), '', 'vm', 2, 1073741824, 'no_vmm',
          CASE WHEN runs THEN 'running'::intended_state ELSE 'stopped' END FROM wanted RETURNING id
      ), vmms AS (
        INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, state_generation)
        SELECT vmm_id, instance_id, places.id, places.ip, 12500 + (wanted.n / places.total)::int, 'running', 3
        FROM wanted JOIN places ON places.n = wanted.n % places.total WHERE runs RETURNING id
      )
      SELECT count(*) FROM made, vmms`,
    [count],
  );
  // One statement for all: a trigger per row keeps the sums of sled and project.
  await pool.query(`INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
    SELECT id, instance_id, sled_id, 2, 1073741824, 'active' FROM vmm`);
  await pool.query(`INSERT INTO provisioning_charge (instance_id, project_id, cpus, memory_bytes)
    SELECT vmm.instance_id, (SELECT id FROM project), 2, 1073741824 FROM vmm`);
  await pool.query(`UPDATE instance SET state = 'vmm', active_vmm_id = vmm.id, state_generation = instance.state_generation + 1
    FROM vmm WHERE vmm.instance_id = instance.id`);
  await pool.query(`INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
    SELECT gen_random_uuid(), 'start', instance_id, id, 'instance-start/' || instance_id, true, now() FROM vmm`);
  await pool.query('VACUUM ANALYZE');
}

/** One HTTP server that answers for every sled, distinguished by the address that it is called at, with what the database holds. */
async function startInventoryServer() {
  let inventories = new Map<string, string>();
  let anySled = '';
  const server = createServer((request, response) => {
    const address = request.socket.localAddress ?? '';
    const vmmId = /^\/vmms\/([^/]+)\/state/.exec(request.url ?? '')?.[1];
    response.setHeader('content-type', 'application/json');
    if (vmmId !== undefined) {
      response.statusCode = 503;
      response.end('{}');
      return;
    }
    response.end(inventories.get(address) ?? '{"vmms":[]}');
  });
  await new Promise<void>((resolve) => server.listen(0, '0.0.0.0', resolve));
  const bound = server.address();
  return {
    port: typeof bound === 'object' && bound !== null ? bound.port : 0,
    sledId: () => anySled,
    /** Takes what the database says as what runs. */
    async load(pool: pg.Pool) {
      const { rows } = await pool.query<{ ip: string; sled_id: string; vmms: unknown }>(`
        SELECT ip, sled_id, jsonb_agg(jsonb_build_object('vmm_id', id, 'instance_id', instance_id, 'vmm_state',
          jsonb_build_object('state', state, 'gen', state_generation, 'time_updated', now()))) AS vmms
        FROM vmm WHERE time_deleted IS NULL AND state = 'running' GROUP BY ip, sled_id`);
      inventories = new Map(rows.map((row) => [row.ip, JSON.stringify({ vmms: row.vmms })]));
      anySled = rows[0]?.sled_id ?? '';
    },
    async close() {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

/**
 * The plans of the statements as the code sends them: PostgreSQL's own `auto_explain` writes them to the client that
 * asked, so that no copy of a statement stands here.
 */
async function explainAll(
  url: string,
  projectId: string,
  middle: string,
  sledId: string,
): Promise<Record<string, string>> {
  const plans: Record<string, string> = {};
  let into: string[] = [];
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  client.on('notice', (notice) => into.push(notice.message ?? ''));
  await client.query(`LOAD 'auto_explain'`);
  await client.query(`SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off;
    SET auto_explain.log_level = notice; SET client_min_messages = notice`);
  const db = drizzle(client, { schema });
  const stopped =
    (await client.query<{ id: string }>(`SELECT id FROM instance WHERE state = 'no_vmm' ORDER BY id DESC LIMIT 1`))
      .rows[0]?.id ?? '';
  const page = { projectId, order: 'name_ascending', limit: 100 } as const;
  const operations: Record<string, () => Promise<unknown>> = {
    placement: () => placeOne(db),
    'claim of a start': () =>
      claimStart(db, {
        instanceId: stopped,
        vmmId: randomUUID(),
        operationId: randomUUID(),
        workflowId: 'bench',
        reason: 'user',
      }),
    'list, page in the middle': () => listInstances(db, { ...page, after: middle }),
    'list of the failed': () => listInstances(db, { ...page, externalState: 'failed', after: null }),
    'list of one sled': () => listInstances(db, { ...page, sledId, after: null }),
    'updater scan: candidates': () => findUpdateCandidates(db),
    'updater scan: open operations': () => findOpenOperations(db, 5_000),
  };
  try {
    for (const [name, operation] of Object.entries(operations)) {
      into = [];
      await operation();
      plans[name] = into
        .map((message) => message.slice(message.indexOf('\n') + 1))
        .filter((message) => !message.includes('guard_') && message.includes('('))
        .join('\n\n');
    }
  } finally {
    await client.end();
  }
  return plans;
}
