/**
 * A Temporal cluster as one runs it: two frontends, two history and two matching services and a worker service, each a process with
 * an address of its own, over a PostgreSQL that holds histories and visibility.
 */
import { execFile, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Connection } from '@temporalio/client';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgresAgain } from '../../stack/embedded-postgres.ts';
import { plainTemporal, type TemporalSettings } from '../../temporal/connection.ts';
import type { SoakTemporal, StartSoakTemporal } from '../soak/embedded-temporal.ts';
import { familyOf, signalAll } from '../soak/processes.ts';
import { Supervisor } from '../support/supervisor.ts';
import { type ClusterBinaries, findClusterBinaries } from './cluster-binaries.ts';

type ServiceName = 'frontend' | 'history' | 'matching' | 'worker';
/** The first of each comes up before the second. */
const PROCESSES: readonly ServiceName[] = [
  'frontend',
  'history',
  'matching',
  'worker',
  'frontend',
  'history',
  'matching',
];
/** Of every address of the cluster; the services' usual ones. */
const PORTS: Readonly<Record<ServiceName, { rpc: number; membership: number }>> = {
  frontend: { rpc: 7233, membership: 6933 },
  history: { rpc: 7234, membership: 6934 },
  matching: { rpc: 7235, membership: 6935 },
  worker: { rpc: 7239, membership: 6939 },
};
const NAMESPACE = 'mooring';
const RETENTION_SECONDS = 72 * 3600;
const HISTORY_SHARDS = 8;
/** So many places after the one that is killed stands, in the order of {@link PROCESSES}, the one that is frozen. */
const FROZEN_AFTER = 3;
const UP_MS = 180_000;
const STOP_MS = 30_000;
const CALL_MS = 5_000;
/** The gRPC code of a namespace that is there already. */
const ALREADY_EXISTS = 6;
/** A process that ends by itself comes back after this long, in milliseconds, as under a service manager. */
const RESTART_AFTER_MS = 500;

/** The protobuf types ask for a `Long` and take a number as well. */
type Seconds = never;

export interface ClusterOptions {
  /** Where data, configuration and logs are; PostgreSQL's user must be able to enter it. */
  readonly folder: string;
  readonly print: (message: string) => void;
}

/** Starts a cluster below a folder, for a soak. */
export const startCluster: StartSoakTemporal = (folder, print) => TemporalCluster.start({ folder, print });

export class TemporalCluster implements SoakTemporal {
  readonly #options: ClusterOptions;
  readonly #binaries: ClusterBinaries;
  readonly #net = `127.${randomInt(1, 255)}.${randomInt(0, 255)}`;
  readonly #processes: Supervisor[];
  #postgres: EmbeddedPostgres | null = null;
  #postgresPort = 0;
  #turn = 0;

  private constructor(options: ClusterOptions, binaries: ClusterBinaries) {
    this.#options = options;
    this.#binaries = binaries;
    this.#processes = PROCESSES.map((service, index) => this.#process(service, index));
  }

  /** Makes the cluster and waits until its namespace can be used. Throws, having stopped what it started, when it can't be. */
  static async start(options: ClusterOptions): Promise<TemporalCluster> {
    const cluster = new TemporalCluster(options, await findClusterBinaries(options.print));
    try {
      await cluster.#bringUp();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  /** By its first frontend. */
  get settings(): TemporalSettings {
    return plainTemporal(`${this.#addressOf(0)}:${PORTS.frontend.rpc}`, NAMESPACE);
  }

  /** The ids of all its processes that run, its PostgreSQL's among them. */
  get pids(): number[] {
    return [...this.#processes.filter(({ runs }) => runs).map(({ pid }) => pid), this.#postgres?.pid ?? []].flat();
  }

  /** Starts whatever does not run, and waits until the namespace answers. */
  async start(): Promise<void> {
    await this.#startPostgres();
    for (const one of this.#processes) {
      one.signal('SIGCONT');
      one.start();
    }
    await this.#untilItServes();
  }

  /** Kills the next one of its processes, its PostgreSQL among them, and freezes another one meanwhile. */
  async disturb(downMs: number): Promise<boolean> {
    const parts = this.#processes.length + 1;
    const turn = this.#turn++;
    const there = await Promise.all([
      this.#kill(turn % parts, downMs),
      // Never its twin: one of each service stays, so that there is something to come through.
      this.#freeze((turn + FROZEN_AFTER) % parts, downMs),
    ]);
    return there.includes(true);
  }

  async #kill(part: number, downMs: number): Promise<boolean> {
    const victim = this.#processes[part];
    if (victim === undefined) {
      const postgres = this.#postgres;
      if (postgres === null) return false;
      this.#postgres = null;
      await postgres.kill();
      await pause(downMs);
      await this.#startPostgres();
      return true;
    }
    if (!victim.runs) return false;
    await victim.kill();
    await pause(downMs);
    victim.start();
    return true;
  }

  async #freeze(part: number, downMs: number): Promise<boolean> {
    const victim = this.#processes[part];
    const family = victim === undefined && this.#postgres !== null ? familyOf(this.#postgres.pid) : [];
    if (victim === undefined ? family.length === 0 : !victim.runs) return false;
    signalAll(family, 'SIGSTOP');
    victim?.signal('SIGSTOP');
    await pause(downMs);
    signalAll(family, 'SIGCONT');
    victim?.signal('SIGCONT');
    return true;
  }

  /** Ends all of it. */
  async stop(): Promise<void> {
    for (const one of this.#processes) one.signal('SIGCONT');
    await Promise.all(this.#processes.map((one) => one.stop(STOP_MS)));
    await this.#postgres?.stop();
    this.#postgres = null;
  }

  #addressOf(index: number): string {
    return `${this.#net}.${index + 1}`;
  }

  async #bringUp(): Promise<void> {
    const { folder, print } = this.#options;
    await mkdir(folder, { recursive: true });
    await chmod(folder, 0o711);
    this.#postgresPort = await freePort();
    await this.#startPostgres();
    await this.#makeSchemas();
    for (const index of PROCESSES.keys()) await this.#writeConfiguration(index);
    for (const one of this.#processes.slice(0, 4)) one.start();
    await this.#makeNamespace();
    for (const one of this.#processes.slice(4)) one.start();
    print(`a Temporal cluster of ${PROCESSES.length} processes at ${this.settings.connection.address}`);
  }

  async #startPostgres(): Promise<void> {
    if (this.#postgres !== null) return;
    const dataDir = join(this.#options.folder, 'temporal-postgres');
    this.#postgres = await startEmbeddedPostgresAgain({ dataDir, port: this.#postgresPort, durable: true });
  }

  get #postgresUrl(): URL {
    if (this.#postgres === null) throw new Error('the PostgreSQL of Temporal does not run');
    return new URL(this.#postgres.url);
  }

  async #makeSchemas(): Promise<void> {
    const { hostname, port, username, password } = this.#postgresUrl;
    const databases = { temporal: 'temporal', temporal_visibility: 'visibility' };
    for (const [database, schema] of Object.entries(databases)) {
      const run = (...args: string[]) =>
        promisify(execFile)(this.#binaries.sqlTool, [
          ...['--plugin', 'postgres12', '--endpoint', hostname, '--port', port],
          ...['--user', username, '--password', decodeURIComponent(password), '--database', database, ...args],
        ]);
      await run('create-database');
      await run('setup-schema', '--version', '0.0');
      await run('update-schema', '--schema-name', `postgresql/v12/${schema}`);
    }
  }

  #folderOf(index: number): string {
    return join(this.#options.folder, `temporal-${index + 1}`);
  }

  /** Written as JSON, which is YAML as well. */
  async #writeConfiguration(index: number): Promise<void> {
    const { hostname, port, username, password } = this.#postgresUrl;
    const store = (databaseName: string, maxConns: number) => ({
      sql: {
        ...{ pluginName: 'postgres12', databaseName, connectAddr: `${hostname}:${port}`, connectProtocol: 'tcp' },
        ...{ user: username, password: decodeURIComponent(password), maxConns, maxIdleConns: maxConns },
        maxConnLifetime: '1h',
      },
    });
    const ip = this.#addressOf(index);
    const services = Object.fromEntries(
      Object.entries(PORTS).map(([name, { rpc, membership }]) => [
        name,
        { rpc: { grpcPort: rpc, membershipPort: membership, bindOnIP: ip } },
      ]),
    );
    const frontend = `${this.#addressOf(0)}:${PORTS.frontend.rpc}`;
    const folder = join(this.#folderOf(index), 'config');
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'dynamic.yaml'), '{}\n');
    const configuration = {
      log: { stdout: true, level: 'warn' },
      persistence: {
        ...{ defaultStore: 'main', visibilityStore: 'visibility', numHistoryShards: HISTORY_SHARDS },
        datastores: { main: store('temporal', 10), visibility: store('temporal_visibility', 4) },
      },
      global: { membership: { maxJoinDuration: '30s', broadcastAddress: ip } },
      services,
      clusterMetadata: {
        ...{ enableGlobalNamespace: false, failoverVersionIncrement: 10 },
        ...{ masterClusterName: 'active', currentClusterName: 'active' },
        clusterInformation: {
          active: { enabled: true, initialFailoverVersion: 1, rpcName: 'frontend', rpcAddress: frontend },
        },
      },
      publicClient: { hostPort: frontend },
      dcRedirectionPolicy: { policy: 'noop' },
      dynamicConfigClient: { filepath: join(folder, 'dynamic.yaml'), pollInterval: '60s' },
    };
    await writeFile(join(folder, 'development.yaml'), JSON.stringify(configuration, null, 2));
  }

  #process(service: ServiceName, index: number): Supervisor {
    const name = `temporal-${service}-${index + 1}`;
    return new Supervisor({
      name,
      restartAfterMs: RESTART_AFTER_MS,
      spawn: () => {
        const log = openSync(join(this.#options.folder, `${name}.log`), 'a');
        const child = spawn(
          this.#binaries.server,
          [
            '--root',
            this.#folderOf(index),
            '--config',
            'config',
            '--env',
            'development',
            'start',
            '--service',
            service,
          ],
          { stdio: ['ignore', log, log] },
        );
        closeSync(log);
        return child;
      },
    });
  }

  /** One call; `null` where it fails, with `ALREADY_EXISTS` for no failure. */
  async #call(call: (connection: Connection) => Promise<unknown>): Promise<boolean> {
    const connection = await Connection.connect({ ...this.settings.connection, connectTimeout: CALL_MS }).catch(
      () => null,
    );
    if (connection === null) return false;
    try {
      await connection.withDeadline(Date.now() + CALL_MS, () => call(connection));
      return true;
    } catch (error) {
      return (error as { code?: unknown }).code === ALREADY_EXISTS;
    } finally {
      await connection.close();
    }
  }

  async #makeNamespace(): Promise<void> {
    await waitUntil(
      () =>
        this.#call(({ workflowService }) =>
          workflowService.registerNamespace({
            namespace: NAMESPACE,
            workflowExecutionRetentionPeriod: { seconds: RETENTION_SECONDS as unknown as Seconds },
          }),
        ),
      'the namespace could not be made',
      UP_MS,
      500,
    );
    await this.#untilItServes();
  }

  async #untilItServes(): Promise<void> {
    await waitUntil(
      () =>
        this.#call(({ workflowService }) =>
          workflowService.listWorkflowExecutions({ namespace: NAMESPACE, pageSize: 1 }),
        ),
      'the cluster did not serve its namespace',
      UP_MS,
      500,
    );
  }
}
