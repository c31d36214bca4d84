/** What every contender runs in: one PostgreSQL, a fresh database a round, a Temporal server of its own, the sled agents. */
import { randomInt, randomUUID } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import pg from 'pg';
import { migrateDatabase } from '../../db/migrate.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer } from '../../stack/temporal-server.ts';
import type { PartInput, PartReady } from '../peers/steps.ts';
import type { SledAgentsInput, SledAgentsReady } from '../processes/sled-agents.ts';
import { type BenchProcess, startProcess } from './child.ts';
import { type PostgresProxy, startPostgresProxy } from './postgres-proxy.ts';

/** Which Temporal server a contender runs on. */
export type TemporalKind = 'none' | 'embedded' | 'as shipped' | 'external';

/** A Temporal server that runs already. */
export interface ExternalTemporal {
  readonly address: string;
  readonly namespace: string;
  /** Its processes on this machine, whose CPU counts as the server's; none where it runs elsewhere, or nobody says. */
  readonly pids: readonly number[];
}

/** One way to run the start saga. */
export interface Contender {
  readonly id: string;
  readonly title: string;
  /** What is safe on disk when the call returns. */
  readonly durability: string;
  readonly temporal: TemporalKind;
  /** Its processes: the file and how many. The first one listens for calls and reports. */
  readonly front: string;
  readonly workers: { readonly file: string; readonly count: number } | null;
  /** The workflow whose history is the saga's, by the instance's id; `null` where there is none. */
  readonly workflowId: ((instanceId: string) => string) | null;
  readonly hasDatabase: boolean;
}

/** Whose CPU and memory is whose. */
export type Role = 'front' | 'worker' | 'server' | 'postgres' | 'sleds';

/** A contender that has been brought up on a fresh database. */
export interface Running {
  readonly contender: Contender;
  readonly url: string;
  readonly databaseUrl: string;
  readonly temporalAddress: string;
  readonly pids: Readonly<Record<Role, readonly number[]>>;
  readonly sledUrls: readonly string[];
  /** Counts what its processes ask PostgreSQL; `null` unless it was started for counting. */
  readonly proxy: Pick<PostgresProxy, 'counts' | 'record' | 'learnIdleTraffic'> | null;
  /** Has every sled hold its reports back, or lets them go. */
  holdReports(on: boolean): Promise<void>;
  readonly pool: pg.Pool;
  /** Instances that are stopped and not yet used. */
  take(count: number): string[];
  stop(): Promise<void>;
}

export interface RunOptions {
  /** How many stopped instances its database has. */
  readonly instances: number;
  /**
   * Counts what crosses the wire to PostgreSQL, with Mooring's own loops off. It costs time, so not while time is measured;
   * and then the loops are on, as shipped.
   */
  readonly counting?: boolean;
  readonly dynamicConfig?: Readonly<Record<string, number | boolean>>;
}

const SLEDS = 8;
const SLED_THREADS = 1_000_000;
const SLED_MEMORY_BYTES = 2 ** 50;
/** Short, so that the guests' own time does not count. */
const TRANSITION_MS = 2;
const TEMPLATE = 'bench_template';

export class Arena {
  readonly dataDir: string;
  readonly postgres: EmbeddedPostgres;
  readonly #external: ExternalTemporal | undefined;
  readonly #admin: pg.Pool;
  #round = 0;

  private constructor(dataDir: string, postgres: EmbeddedPostgres, external: ExternalTemporal | undefined) {
    this.dataDir = dataDir;
    this.postgres = postgres;
    this.#external = external;
    this.#admin = new pg.Pool({ connectionString: postgres.url, max: 1 });
    this.#admin.on('error', () => {});
  }

  /** Brings PostgreSQL up, as durable as it is shipped. `external`: a Temporal server of the user's. */
  static async open(external: ExternalTemporal | undefined): Promise<Arena> {
    const dataDir = await mkdtemp('/var/tmp/mooring-bench-');
    await chmod(dataDir, 0o711);
    const postgres = await startEmbeddedPostgres({ dataDir: join(dataDir, 'postgres') });
    const arena = new Arena(dataDir, postgres, external);
    await arena.#admin.query(`CREATE DATABASE ${TEMPLATE}`);
    await migrateDatabase(arena.databaseUrl(TEMPLATE));
    return arena;
  }

  databaseUrl(name: string): string {
    const url = new URL(this.postgres.url);
    url.pathname = `/${name}`;
    return url.toString();
  }

  /** Makes a database with the schema, one project, and the sleds at `addresses`. Returns its URL. */
  async newDatabase(addresses: readonly string[], size?: { threads: number; memoryBytes: number }): Promise<string> {
    this.#round += 1;
    const name = `bench_${this.#round}`;
    await this.#admin.query(`CREATE DATABASE ${name} TEMPLATE ${TEMPLATE}`);
    const url = this.databaseUrl(name);
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    await client.query(`INSERT INTO project (id, name, description) VALUES ($1, 'bench', '')`, [randomUUID()]);
    for (const [index, address] of addresses.entries()) {
      await client.query(`INSERT INTO sled (id, name, address, threads, memory_bytes) VALUES ($1, $2, $3, $4, $5)`, [
        randomUUID(),
        `sled-${index + 1}`,
        address,
        size?.threads ?? SLED_THREADS,
        size?.memoryBytes ?? SLED_MEMORY_BYTES,
      ]);
    }
    await client.end();
    return url;
  }

  async dropDatabase(url: string): Promise<void> {
    await this.#admin.query(`DROP DATABASE ${new URL(url).pathname.slice(1)} WITH (FORCE)`);
  }

  /** Brings a contender up: its own server and database, nothing left of any other. */
  async start(contender: Contender, options: RunOptions): Promise<Running> {
    const stops: (() => Promise<unknown>)[] = [];
    const stop = async () => {
      for (const end of stops.splice(0).reverse()) await end().catch(() => {});
    };
    try {
      const net = `127.${randomInt(1, 255)}.${randomInt(0, 255)}`;
      const addresses: string[] = [];
      for (let index = 1; index <= SLEDS; index++)
        addresses.push(`${net}.${index}:${await freePort(`${net}.${index}`)}`);
      const databaseUrl = await this.newDatabase(addresses);
      stops.push(() => this.dropDatabase(databaseUrl));
      const pool = new pg.Pool({ connectionString: databaseUrl, max: 2, application_name: 'bench-watch' });
      pool.on('error', () => {});
      stops.push(() => pool.end());
      await seedInstances(pool, options.instances);
      const { rows } = await pool.query<{ id: string }>('SELECT id FROM instance ORDER BY name');
      const unused = rows.map((row) => row.id);

      const dataDir = join(this.dataDir, `round-${this.#round}`);
      let temporalAddress = '';
      let temporalNamespace = 'default';
      const server: number[] = [];
      if (contender.temporal === 'external') {
        if (this.#external === undefined) throw new Error(`${contender.id} needs --temporal ADDRESS`);
        temporalAddress = this.#external.address;
        temporalNamespace = this.#external.namespace;
        server.push(...this.#external.pids);
      } else if (contender.temporal !== 'none') {
        const { path } = await findTemporalBinary();
        const temporal = await startTemporalServer({
          binary: path,
          uiPort: null,
          dbFilename: join(this.dataDir, `temporal-${this.#round}.db`),
          asShipped: contender.temporal === 'as shipped',
          ...(options.dynamicConfig === undefined ? {} : { dynamicConfig: options.dynamicConfig }),
        });
        stops.push(() => rm(join(this.dataDir, `temporal-${this.#round}.db`), { force: true }));
        stops.push(temporal.stop);
        temporalAddress = temporal.address;
        server.push(temporal.pid);
      }

      let seenUrl = databaseUrl;
      let proxy: PostgresProxy | null = null;
      if (options.counting) {
        proxy = await startPostgresProxy(databaseUrl);
        stops.push(proxy.close);
        seenUrl = proxy.url;
      }
      const port = await freePort();
      const input: PartInput = {
        databaseUrl: seenUrl,
        port,
        temporalAddress,
        temporalNamespace,
        dataDir,
        loopsOff: options.counting ?? false,
      };
      const sleds = await startProcess<SledAgentsReady>('sled agents', 'processes/sled-agents.ts', {
        controlPlaneUrl: `http://127.0.0.1:${port}`,
        addresses,
        threads: SLED_THREADS,
        memoryBytes: SLED_MEMORY_BYTES,
        transitionMs: TRANSITION_MS,
      } satisfies SledAgentsInput);
      stops.push(sleds.stop);
      const workers: BenchProcess<PartReady>[] = [];
      for (let index = 0; index < (contender.workers?.count ?? 0); index++) {
        const worker = await startProcess<PartReady>(`${contender.id} worker`, contender.workers?.file ?? '', input);
        stops.push(worker.stop);
        workers.push(worker);
      }
      const front = await startProcess<PartReady>(contender.id, contender.front, input);
      stops.push(front.stop);
      if (front.ready.serverPid !== undefined) server.push(front.ready.serverPid);
      return {
        contender,
        url: front.ready.url,
        databaseUrl,
        temporalAddress,
        pids: {
          front: [front.pid],
          worker: workers.map((worker) => worker.pid),
          server,
          postgres: [this.postgres.pid],
          sleds: [sleds.pid],
        },
        sledUrls: sleds.ready.urls,
        proxy,
        async holdReports(on) {
          const answer = await fetch(`${sleds.ready.controlUrl}/${on ? 'hold' : 'release'}`, { method: 'POST' });
          if (!answer.ok) throw new Error(`the sleds' reports could not be held: ${await answer.text()}`);
        },
        pool,
        take(count) {
          const taken = unused.splice(0, count);
          if (taken.length < count) throw new Error(`${contender.id}: no ${count} unused instances are left`);
          return taken;
        },
        stop,
      };
    } catch (error) {
      await stop();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#admin.end();
    await this.postgres.stop();
    await rm(this.dataDir, { recursive: true, force: true });
  }
}

/** Makes stopped instances of 2 CPUs and 1 GiB. */
async function seedInstances(pool: pg.Pool, count: number): Promise<void> {
  await pool.query(
    `INSERT INTO instance (id, project_id, name, description, hostname, ncpus, memory_bytes, state, intended_state)
     SELECT gen_random_uuid(), (SELECT id FROM project LIMIT 1), 'vm-' || lpad(n::text, 7, '0'), '', 'vm', 2, 1073741824, 'no_vmm', 'stopped'
     FROM generate_series(1, $1) n`,
    [count],
  );
  await pool.query('ANALYZE');
}

/** Waits until every VMM that was claimed has been reported as running, unwound or gone. */
export async function settle(running: Running): Promise<void> {
  if (!running.contender.hasDatabase) return;
  await waitUntil(
    async () => {
      const { rows } = await running.pool.query<{ open: number }>(
        `SELECT count(*)::int AS open FROM vmm WHERE state IN ('creating', 'starting', 'stopping', 'stopped', 'migrating') AND time_deleted IS NULL`,
      );
      return rows[0]?.open === 0;
    },
    `${running.contender.id}: its VMMs did not settle`,
    120_000,
    20,
  );
}
