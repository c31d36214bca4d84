/**
 * A world for tests of fencing: PostgreSQL, Temporal, a worker and an API that can go away and come back, and sled agents
 * that are processes of their own, each behind a network that can be cut in either direction.
 */
import { existsSync, readFileSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { eq, sql } from 'drizzle-orm';
import { SledClient } from '../../activities/sled-client.ts';
import { type RunningApi, startApi } from '../../api/server.ts';
import { MooringApiError, MooringClient } from '../../client/mooring-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { installJournal } from '../../db/journal.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import { type InstanceRecord, readInstance } from '../../db/queries/read-instance.ts';
import { vmm } from '../../db/schema.ts';
import { type Examination, examine } from '../../doctor/examine.ts';
import { findingLines } from '../../doctor/finding.ts';
import { findOverlaps, type GuestRun, readGuestRuns } from '../../doctor/witness.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { readGuestLogFile } from '../../sled-agent/guest-log.ts';
import type { GuestLogEntry } from '../../sled-agent/hypervisor.ts';
import { type EmbeddedPostgres, startEmbeddedPostgresAgain } from '../../stack/embedded-postgres.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { plainTemporal, type TemporalSettings } from '../../temporal/connection.ts';
import type { InstanceCreate } from '../../wire/operator-api/instances.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { testBundle } from './bundle.ts';
import { spawnMooring } from './command.ts';
import { CuttableProxy } from './cuttable-proxy.ts';
import { copyPostgresTemplate } from './postgres-template.ts';
import { loopbackAddress } from './sled.ts';
import { Supervisor } from './supervisor.ts';
import { eventually, STUCK_MS } from './wait.ts';

/** What makes the wall clock of an agent, and of its watchdog, jump; with it SIGUSR2 makes a process stuck. */
export const STRANGE_CLOCK = {
  NODE_OPTIONS: `--import=${new URL('./strange-clock.mjs', import.meta.url).href}`,
} as const;

const SLED_THREADS = 256;
const SLED_MEMORY_BYTES = 512 * 1024 ** 3;
/** An agent that ends by itself comes back after this long, in milliseconds. */
const RESTART_AFTER_MS = 300;

export interface FencingWorldOptions {
  readonly sleds: number;
  /** Of every agent, in milliseconds. */
  readonly leaseMs: number;
  readonly reconcileEveryMs?: number;
  /** More arguments of every agent. */
  readonly agentArguments?: readonly string[];
  readonly agentEnv?: Readonly<Record<string, string>>;
  /** Whether the agents keep their records on disk; default true. */
  readonly keepBook?: boolean;
}

/** A sled: its agent's process, as often as it is started, and the network on both sides of it. */
export class FencedSled {
  readonly name: string;
  readonly ip: string;
  readonly directory: string;
  /** From the agent to the control plane: renewals, reports. */
  readonly up: CuttableProxy;
  /** From the control plane to the agent: commands. */
  readonly down: CuttableProxy;
  readonly #address: string;
  readonly #logFile: string;
  readonly #agent: Supervisor;
  id = '';

  constructor(parts: {
    name: string;
    ip: string;
    directory: string;
    address: string;
    up: CuttableProxy;
    down: CuttableProxy;
    arguments: readonly string[];
    env: Readonly<Record<string, string>>;
  }) {
    this.name = parts.name;
    this.ip = parts.ip;
    this.directory = parts.directory;
    this.up = parts.up;
    this.down = parts.down;
    this.#address = parts.address;
    const logFile = join(parts.directory, 'agent.log');
    this.#logFile = logFile;
    this.#agent = new Supervisor({
      name: `the agent of ${parts.name}`,
      spawn: () => spawnMooring(parts.arguments, { env: parts.env, logFile }),
      logFile,
      restartAfterMs: RESTART_AFTER_MS,
    });
  }

  get pid(): number {
    return this.#agent.pid;
  }
  get runs(): boolean {
    return this.#agent.runs;
  }
  /** What its agents have printed so far. */
  get output(): string {
    return existsSync(this.#logFile) ? readFileSync(this.#logFile, 'utf8') : '';
  }
  get url(): string {
    return `http://${this.#address}`;
  }

  /** Starts its agent, which is started again when it ends. */
  start(): void {
    this.#agent.start();
  }

  /** Sends its agent a signal. After SIGKILL it stays down until {@link start}, unless `again`. */
  signal(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT' | 'SIGUSR2', again = false): void {
    if (signal === 'SIGKILL' && !again) this.#agent.leaveDown();
    this.#agent.signal(signal);
  }

  /** Its agent stays down from the next time it ends. */
  leaveDown(): void {
    this.#agent.leaveDown();
  }

  async ended(): Promise<void> {
    await this.#agent.ended();
  }

  /** Waits until its agent has a lease and takes commands. */
  async takesCommands(): Promise<void> {
    await waitUntil(
      () =>
        fetch(`${this.url}/vmms`, { signal: AbortSignal.timeout(2_000) }).then(
          (answer) => answer.ok,
          () => false,
        ),
      `the agent of ${this.name} takes no commands`,
      STUCK_MS,
    ).catch((error: Error) => {
      throw new Error(`${error.message}: ${this.output.slice(-2_000)}`);
    });
  }

  /** What its guests did, as the disk has it. */
  journal(): GuestLogEntry[] {
    return readGuestLogFile(join(this.directory, 'guests.jsonl'));
  }

  async stop(): Promise<void> {
    this.#agent.leaveDown();
    this.#agent.signal('SIGCONT');
    await this.#agent.kill();
    await Promise.all([this.up.close(), this.down.close()]);
  }
}

function notIfBusy(error: unknown): boolean {
  if (error instanceof MooringApiError && error.status >= 500) return false;
  throw error;
}

export class FencingWorld {
  readonly sleds: FencedSled[] = [];
  readonly directory: string;
  readonly #options: FencingWorldOptions;
  #postgres: EmbeddedPostgres | null = null;
  #postgresPort = 0;
  #temporal: TemporalServer | null = null;
  #worker: RunningWorker | null = null;
  #api: RunningApi | null = null;
  #apiPort = 0;
  #database: OpenDatabase | null = null;
  #databaseUrl = '';
  readonly #sledClient = new SledClient();
  #instances = 0;

  private constructor(options: FencingWorldOptions, directory: string) {
    this.#options = options;
    this.directory = directory;
  }

  static async start(options: FencingWorldOptions): Promise<FencingWorld> {
    const directory = await mkdtemp('/var/tmp/mooring-fencing-');
    await chmod(directory, 0o711);
    const world = new FencingWorld(options, directory);
    try {
      await world.#bringUp();
      return world;
    } catch (error) {
      await world.stop();
      throw error;
    }
  }

  get db() {
    if (this.#database === null) throw new Error('the database is not open');
    return this.#database.db;
  }
  get client(): MooringClient {
    return new MooringClient({ url: `http://127.0.0.1:${this.#apiPort}` });
  }
  get temporalSettings(): TemporalSettings {
    return plainTemporal(this.#temporal?.address ?? '');
  }

  async #bringUp(): Promise<void> {
    const { sleds, leaseMs } = this.#options;
    this.#postgresPort = await freePort();
    await copyPostgresTemplate(join(this.directory, 'postgres'));
    await this.startDatabase();
    await migrateDatabase(this.#databaseUrl);
    this.#database = openDatabase(this.#databaseUrl, { maxConnections: 3, applicationName: 'mooring-test' });
    await installJournal(this.db);
    this.#temporal = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
    this.#worker = await startWorker({
      databaseUrl: this.#databaseUrl,
      temporal: this.temporalSettings,
      alone: true,
      bundle: await testBundle(),
      log: createLog('worker', 'fatal'),
      reconcileEveryMs: this.#options.reconcileEveryMs ?? 2_000,
    });
    this.#apiPort = await freePort();
    await this.startApi();
    await this.client.createProject({ name: 'default', description: '' });
    for (let index = 1; index <= sleds; index++) this.sleds.push(await this.#makeSled(`sled-${index}`));
    for (const sled of this.sleds) sled.start();
    for (const sled of this.sleds) {
      const added = await this.client.addSled({
        name: sled.name,
        address: sled.down.address,
        threads: SLED_THREADS,
        memory: SLED_MEMORY_BYTES,
      });
      sled.id = added.id;
    }
    await Promise.all(this.sleds.map((sled) => sled.takesCommands()));
    if (leaseMs > 0)
      await waitUntil(
        async () => (await this.sledViews()).every(({ lease }) => lease !== null),
        'a sled never got a lease',
        STUCK_MS,
      );
  }

  async #makeSled(name: string): Promise<FencedSled> {
    const ip = loopbackAddress();
    const address = `${ip}:${await freePort(ip)}`;
    const directory = join(this.directory, name);
    await mkdir(directory, { recursive: true });
    const up = await CuttableProxy.open(ip, () => (this.#api === null ? null : `127.0.0.1:${this.#apiPort}`));
    const down = await CuttableProxy.open(ip, () => address);
    const { leaseMs, agentArguments = [], agentEnv = {}, keepBook = true } = this.#options;
    return new FencedSled({
      ...{ name, ip, directory, address, up, down },
      env: agentEnv,
      arguments: [
        ...['sled-agent', '--name', name, '--address', address, '--control-plane', `http://${up.address}`],
        ...['--threads', String(SLED_THREADS), '--memory', String(SLED_MEMORY_BYTES), '--transition-ms', '20'],
        ...['--network-poll-ms', '0', '--guest-log', join(directory, 'guests.jsonl')],
        ...(keepBook ? ['--data', join(directory, 'data')] : []),
        ...(leaseMs > 0 ? ['--fencing', '--lease', String(leaseMs / 1000)] : []),
        ...agentArguments,
      ],
    });
  }

  async startDatabase(): Promise<void> {
    this.#postgres ??= await startEmbeddedPostgresAgain({
      dataDir: join(this.directory, 'postgres'),
      port: this.#postgresPort,
      durable: true,
    });
    this.#databaseUrl = this.#postgres.url;
  }

  /** Kills PostgreSQL; it stays down until {@link startDatabase}. */
  async killDatabase(): Promise<void> {
    await this.#postgres?.kill();
    this.#postgres = null;
  }

  async startApi(): Promise<void> {
    this.#api ??= await startApi({
      databaseUrl: this.#databaseUrl,
      temporal: this.temporalSettings,
      host: '127.0.0.1',
      port: this.#apiPort,
      log: createLog('api', 'fatal'),
      leaseBeatMs: 100,
      authentication: 'open',
      plainSleds: true,
    });
  }

  async stopApi(): Promise<void> {
    const api = this.#api;
    this.#api = null;
    await api?.stop();
  }

  sledOf(id: string | null | undefined): FencedSled {
    const found = this.sleds.find((sled) => sled.id === id);
    if (found === undefined) throw new Error(`there is no sled ${id} in this world`);
    return found;
  }

  async sledViews(): Promise<SledView[]> {
    const found: SledView[] = [];
    for await (const sled of this.client.listSleds()) found.push(sled);
    return found;
  }

  async declaredDead(sled: FencedSled): Promise<void> {
    await waitUntil(
      async () => (await this.client.getSled(sled.id)).declared_dead !== null,
      `${sled.name} was never declared dead`,
      STUCK_MS,
      50,
    );
  }

  async inService(sled: FencedSled): Promise<void> {
    await waitUntil(
      async () => {
        const { declared_dead, lease } = await this.client.getSled(sled.id);
        return declared_dead === null && lease?.standing === 'held';
      },
      `${sled.name} never came back into service`,
      STUCK_MS,
      50,
    ).catch((error: Error) => {
      throw new Error(`${error.message}: ${sled.output.slice(-2_000)}`);
    });
  }

  /** How often any sled was declared dead so far. */
  async declarations(): Promise<number> {
    const result = await this.db.execute(sql`SELECT sum(lease_epoch)::int AS n FROM sled`);
    return Number(result.rows[0]?.n ?? 0);
  }

  record(id: string): Promise<InstanceRecord> {
    return readInstance(this.db, id).then((found) => found ?? Promise.reject(new Error(`no instance ${id}`)));
  }

  /** A VMM's row; `null` when there is none. */
  async vmm(id: string) {
    const [row] = await this.db.select().from(vmm).where(eq(vmm.id, id));
    return row ?? null;
  }

  /** Creates and starts an instance that is restarted without a cooldown, and waits until it runs; returns its id. */
  async running(values: Partial<InstanceCreate> = {}): Promise<string> {
    this.#instances += 1;
    const name = `vm-${this.#instances}`;
    const made = await this.client.createInstance(
      { name, hostname: name, description: '', ncpus: 2, memory: 1024 ** 3, ...values, start: false },
      { project: 'default' },
    );
    await this.client.updateInstance(made.id, { auto_restart_cooldown_seconds: 0 });
    // On a machine that was busy for the better part of a lease every sled may be late for a moment.
    await waitUntil(
      () => this.client.startInstance(made.id).then(() => true, notIfBusy),
      `instance ${name} was never started`,
      STUCK_MS,
      500,
    );
    await this.runs(made.id);
    return made.id;
  }

  /** Waits until an instance runs by the database and by its sled; on another VMM than `not`, where one is named. */
  async runs(id: string, not?: string): Promise<InstanceRecord> {
    let last = '';
    await eventually(async () => {
      const { externalState, active } = await this.record(id).catch(
        () => ({ externalState: 'unread', active: null }) as const,
      );
      last = `${externalState} ${active?.id ?? ''} ${active?.state ?? ''}`;
      if (externalState !== 'running' || active?.state !== 'running' || active.id === not) return false;
      // What a sled has powered off is still running by the database until its report has come.
      const answer = await fetch(`${this.sledOf(active.sledId).url}/vmms/${active.id}/state`, {
        signal: AbortSignal.timeout(2_000),
      }).catch(() => null);
      return answer?.status === 200 && /"state":"running"/.test(await answer.text());
    }, `instance ${id} never ran`).catch((error: Error) => {
      throw new Error(`${error.message}; it is ${last}`);
    });
    return this.record(id);
  }

  /** All sleds' journals together: throws when two copies of a guest ever executed at a time. */
  witness(): void {
    const sledOf = new Map<GuestRun, string>();
    for (const sled of this.sleds)
      for (const run of readGuestRuns(sled.journal(), 'monotonic')) sledOf.set(run, sled.name);
    const overlaps = findOverlaps([...sledOf.keys()]).map(({ earlier, later }) => {
      const togetherMs = Math.min(earlier.ceasedMs, later.ceasedMs) - later.beganMs;
      const place = (run: GuestRun) => `VMM ${run.vmmId} on ${sledOf.get(run)}`;
      return `instance ${later.instanceId}: ${place(earlier)} and ${place(later)}, for ${togetherMs.toFixed(0)} ms`;
    });
    if (overlaps.length > 0) throw new Error(`guests ran twice:\n${overlaps.join('\n')}`);
  }

  /** The doctor's look at rest: throws its lines when it still has findings after a while. */
  async examined(): Promise<Examination> {
    let last: Examination | null = null;
    await waitUntil(
      async () => {
        last = await examine({ db: this.db, sleds: this.#sledClient, atRest: true, journal: 'required' });
        return last.findings.length === 0;
      },
      'the doctor has findings',
      STUCK_MS,
      300,
    ).catch((error: Error) => {
      throw new Error(`${error.message}:\n${findingLines(last?.findings ?? []).join('\n')}`);
    });
    if (last === null) throw new Error('nothing was examined');
    return last;
  }

  async stop(): Promise<void> {
    await Promise.allSettled(this.sleds.map((sled) => sled.stop()));
    await this.stopApi().catch(() => {});
    await this.#worker?.stop().catch(() => {});
    await this.#temporal?.stop().catch(() => {});
    await Promise.allSettled([this.#database?.close(), this.#sledClient.close()]);
    await this.#postgres?.stop().catch(() => {});
    if (process.env.MOORING_KEEP !== 'yes') await rm(this.directory, { recursive: true, force: true });
  }
}
