/**
 * The system under the soak: PostgreSQL, the Temporal server, workers, APIs and sled agents, each a process of its own,
 * with a network between the APIs and workers on one side and the sled agents on the other.
 */
import { randomInt } from 'node:crypto';
import { chmod, mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Client, Connection } from '@temporalio/client';
import { z } from 'zod';
import { migrateDatabase } from '../../db/migrate.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { type EmbeddedPostgres, startEmbeddedPostgresAgain } from '../../stack/embedded-postgres.ts';
import type { TemporalSettings } from '../../temporal/connection.ts';
import { runCommand, spawnMooring } from '../support/command.ts';
import { Supervisor } from '../support/supervisor.ts';
import { SledDisk } from './disk.ts';
import { type SoakTemporal, type StartSoakTemporal, startEmbeddedTemporal } from './embedded-temporal.ts';
import { type Link, type LinkCounts, openLink } from './network.ts';
import { type FreezeTarget, type KillTarget, LEASE_MS, type SledKind, sledKind } from './plan.ts';
import { familyOf, signalAll } from './processes.ts';
import type { AgentLife } from './witness.ts';

export interface SystemOptions {
  readonly seed: number;
  readonly workers: number;
  readonly apis: number;
  readonly sleds: number;
  /** What it runs on; the embedded server by default. */
  readonly startTemporal?: StartSoakTemporal | undefined;
  readonly print: (message: string) => void;
}

/** A server in a sled's place in the rack: when it is gone for good, another one takes the place. */
export interface SoakSled {
  readonly kind: SledKind;
  readonly name: string;
  readonly id: string;
  /** `ip:port` of the agent itself, without the network in between. */
  readonly agentAddress: string;
  readonly commands: Link;
  readonly reports: Link;
  readonly agent: Supervisor;
  readonly disk: SledDisk | null;
  /** Says by how much the agent's wall clock is off. */
  readonly clockFile: string;
  readonly logFile: string;
}

/** When all guests of a sled ended without anybody's asking, between two moments, in milliseconds since the epoch. */
export interface SledEnd {
  readonly sledId: string;
  readonly fromMs: number;
  readonly untilMs: number;
}

/** Loaded into an agent, and its watchdog, so that their clock can be set. */
const SETTABLE_CLOCK = new URL('../support/settable-clock.mjs', import.meta.url).href;
/** What an agent says when it powers its guests off by itself. */
const POWERS_OFF = /powered off/g;
const READ_LOGS_EVERY_MS = 500;
/** A process's end is seen so much later at most, in milliseconds. */
const DEATH_SEEN_MS = 1_000;
/** How long a worker may take to end what it has begun, in milliseconds: its own limit, and what a busy machine takes. */
const WORKER_STOP_TIMEOUT_MS = 60_000;
/** For so long a build that was replaced is given a worker to end its starts and migrations, in milliseconds. */
const OLD_BUILD_TIMEOUT_MS = 240_000;

const SLED_THREADS = 96;
const SLED_MEMORY_BYTES = 128 * 1024 ** 3;
/** Long enough that a fault can hit a transition of a VM. */
const TRANSITION_MS = 120;
const UP_TIMEOUT_MS = 180_000;
const STOP_TIMEOUT_MS = 20_000;
/** A process that ends by itself comes back after this long, in milliseconds. */
const RESTART_AFTER_MS = 500;
/** Operators are patient: meanwhile everything may be down, and the machine busy. */
const PERSIST_TIMEOUT_MS = 300_000;

export class SoakSystem {
  readonly dataDir: string;
  readonly workers: Supervisor[] = [];
  readonly apis: { readonly url: string; readonly address: string; readonly process: Supervisor }[] = [];
  readonly sleds: SoakSled[] = [];
  /** Servers that were expunged; some are switched on again. */
  readonly retired: SoakSled[] = [];
  readonly ends: SledEnd[] = [];
  readonly #options: SystemOptions;
  readonly #lives: { sled: string; file: string; killedAtMs: number | null }[] = [];
  /** Sleds without power: nothing starts their agents. */
  readonly #off = new Set<SoakSled>();
  /** How often an agent was stopped for so long that its watchdog had to kill it. */
  readonly #longFreezes = new Map<Supervisor, number>();
  readonly #leftWorkers: Supervisor[] = [];
  readonly #frozenPids = new Set<number>();
  readonly #disks: SledDisk[] = [];
  readonly #builds: string[] = ['soak-1'];
  readonly #readUntil = new Map<string, { bytes: number; atMs: number }>();
  #reading: NodeJS.Timeout | undefined;
  readonly #killed = new Set<KillTarget>();
  readonly #net = `127.${randomInt(1, 255)}.${randomInt(0, 255)}`;
  #postgres: EmbeddedPostgres | null = null;
  #postgresPort = 0;
  #databaseUrl = '';
  #temporal: SoakTemporal | null = null;
  #sledsMade = 0;
  #turn = 0;

  private constructor(options: SystemOptions, dataDir: string) {
    this.#options = options;
    this.dataDir = dataDir;
  }

  /** Brings everything up. Throws, having stopped what it started, when a part does not come up. */
  static async start(options: SystemOptions): Promise<SoakSystem> {
    // PostgreSQL's user must be able to enter it, also when this process runs as root.
    const dataDir = await mkdtemp(join(process.platform === 'linux' ? '/var/tmp' : tmpdir(), 'mooring-soak-'));
    await chmod(dataDir, 0o711);
    const system = new SoakSystem(options, dataDir);
    try {
      await system.#bringUp();
      return system;
    } catch (error) {
      await system.stop();
      throw error;
    }
  }

  get databaseUrl(): string {
    return this.#databaseUrl;
  }

  /** Throws before it was started. */
  get temporal(): TemporalSettings {
    if (this.#temporal === null) throw new Error('Temporal was not started');
    return this.#temporal.settings;
  }

  get #temporalEnvironment() {
    const { connection, namespace } = this.temporal;
    return { TEMPORAL_ADDRESS: connection.address ?? '', TEMPORAL_NAMESPACE: namespace };
  }

  /** What the network did so far. */
  get messages(): LinkCounts {
    const links = [...this.sleds, ...this.retired].flatMap(({ commands, reports }) => [commands, reports]);
    const sum = (count: keyof LinkCounts) => links.reduce((total, link) => total + link.counts[count], 0);
    return {
      messages: sum('messages'),
      delayed: sum('delayed'),
      duplicated: sum('duplicated'),
      lost: sum('lost'),
      usurped: sum('usurped'),
    };
  }

  /** The build whose workers run now. */
  get build(): string {
    return this.#builds.at(-1) ?? '';
  }

  /**
   * How often a process ended although nobody ended it, by its name. A watchdog that kills an agent which can't keep the
   * promise of its lease is meant to.
   */
  async endedByThemselves(): Promise<Map<string, number>> {
    const found = new Map<string, number>();
    const count = (one: Supervisor, excused: number) => {
      if (one.endedByItself > excused) found.set(one.name, one.endedByItself - excused);
    };
    for (const one of [...this.workers, ...this.#leftWorkers, ...this.apis.map((api) => api.process)]) count(one, 0);
    for (const sled of [...this.sleds, ...this.retired]) count(sled.agent, await this.#watchdogKills(sled));
    return found;
  }

  /** How often any sled's watchdog killed its agent. */
  async watchdogKills(): Promise<number> {
    const kills = await Promise.all([...this.sleds, ...this.retired].map((sled) => this.#watchdogKills(sled)));
    return kills.reduce((sum, one) => sum + one, 0);
  }

  async #watchdogKills({ agent, disk }: SoakSled): Promise<number> {
    if (disk === null) return 0;
    const log = await readFile(join(disk.folder, 'watchdog.log'), 'utf8').catch(() => '');
    // On a full disk it could not say so.
    return Math.max(log.match(/it is killed/g)?.length ?? 0, this.#longFreezes.get(agent) ?? 0);
  }

  async #bringUp(): Promise<void> {
    const { workers, apis, sleds, print } = this.#options;
    this.#postgresPort = await freePort();
    await this.startPostgres();
    await migrateDatabase(this.#databaseUrl);
    print(`PostgreSQL on port ${this.#postgresPort}`);
    this.#temporal = await (this.#options.startTemporal ?? startEmbeddedTemporal)(this.dataDir, print);
    for (let index = 0; index < workers; index++) this.workers.push(this.#worker(`worker-${index + 1}`, this.build));
    for (let index = 0; index < apis; index++) {
      const port = await freePort();
      const name = `api-${index + 1}`;
      this.apis.push({
        url: `http://127.0.0.1:${port}`,
        address: `127.0.0.1:${port}`,
        process: this.#process(name, ['api', '--authentication', 'open', '--port', String(port), '--insecure-sleds']),
      });
    }
    for (const one of [...this.workers, ...this.apis.map((api) => api.process)]) one.start();
    await this.#untilApisAnswer();
    print(`${workers} workers, ${apis} APIs`);
    for (let index = 0; index < sleds; index++) this.sleds.push(await this.#addSled(sledKind(index)));
    print(`${this.sleds.map(({ kind }) => kind).join(', ')}: ${sleds} sleds`);
    this.#reading = setInterval(() => void this.#readAgentLogs(), READ_LOGS_EVERY_MS);
  }

  #worker(name: string, build: string): Supervisor {
    return this.#process(name, ['worker'], { MOORING_BUILD_ID: build });
  }

  #process(name: string, args: string[], more: Record<string, string> = {}): Supervisor {
    const logFile = join(this.dataDir, `${name}.log`);
    const env = {
      DATABASE_URL: this.#databaseUrl,
      ...this.#temporalEnvironment,
      MOORING_LOG_LEVEL: 'warn',
      ...more,
    };
    const spawn = () => spawnMooring(args, { env, logFile });
    return new Supervisor({ name, spawn, logFile, restartAfterMs: RESTART_AFTER_MS });
  }

  /** Starts PostgreSQL on its data, if it isn't running; again when what a killed one left is still leaving. */
  async startPostgres(): Promise<void> {
    if (this.#postgres !== null) return;
    this.#postgres = await startEmbeddedPostgresAgain({
      dataDir: join(this.dataDir, 'postgres'),
      port: this.#postgresPort,
      durable: true,
    });
    this.#databaseUrl = this.#postgres.url;
  }

  async #addSled(kind: SledKind): Promise<SoakSled> {
    this.#sledsMade += 1;
    const name = `sled-${this.#sledsMade}`;
    const ip = process.platform === 'linux' ? `${this.#net}.${this.#sledsMade}` : '127.0.0.1';
    const agentAddress = `${ip}:${await freePort(ip)}`;
    const { seed } = this.#options;
    let up = false;
    const commands = await openLink({
      ip,
      seed,
      name,
      direction: 'commands',
      receiver: () => (up ? agentAddress : null),
    });
    const reports = await openLink({
      ip,
      seed,
      name,
      direction: 'reports',
      receiver: () => this.anyApi()?.address ?? null,
    });
    let starts = 0;
    let id: string | null = null;
    const lifeOf = () => this.#lives.filter((life) => life.sled === name).at(-1);
    const guestLogFile = () => join(this.dataDir, `guests-${name}-${starts + 1}.jsonl`);
    const logFile = join(this.dataDir, `${name}.log`);
    const clockFile = join(this.dataDir, `${name}.clock`);
    const disk = kind === 'bare' ? null : await SledDisk.make(join(this.dataDir, `data-${name}`));
    if (disk !== null) this.#disks.push(disk);
    const modules = [SETTABLE_CLOCK, ...(disk?.agentNeeds.modules ?? [])];
    const env = {
      NODE_OPTIONS: modules.map((module) => `--import=${module}`).join(' '),
      MOORING_TEST_CLOCK: clockFile,
      ...disk?.agentNeeds.env,
    };
    const args = () => [
      ...['sled-agent', '--name', name, '--address', agentAddress, '--control-plane', `http://${reports.address}`],
      ...['--threads', String(SLED_THREADS), '--memory', String(SLED_MEMORY_BYTES)],
      ...['--transition-ms', String(TRANSITION_MS), '--guest-log', guestLogFile(), '--test-endpoints'],
      ...(disk === null ? [] : ['--data', disk.folder]),
      ...(kind === 'fenced' ? ['--fencing', '--lease', String(LEASE_MS / 1000)] : []),
    ];
    const agent = new Supervisor({
      name,
      spawn: () => spawnMooring(args(), { logFile, env }),
      logFile,
      restartAfterMs: RESTART_AFTER_MS,
      onStart: () => {
        this.#lives.push({ sled: name, file: guestLogFile(), killedAtMs: null });
        starts += 1;
        up = true;
      },
      onKill: () => {
        const life = lifeOf();
        if (life !== undefined) life.killedAtMs = monotonicMs();
      },
      onEnd: () => {
        up = false;
        commands.cut();
        const life = lifeOf();
        if (life !== undefined) life.killedAtMs ??= monotonicMs();
        if (id !== null) this.ends.push({ sledId: id, fromMs: Date.now() - DEATH_SEEN_MS, untilMs: Date.now() });
      },
    });
    agent.start();
    await untilItAnswers(`http://${agentAddress}/vmms`, UP_TIMEOUT_MS);
    id = await this.#registerSled(name, commands.address);
    return { kind, name, id, agentAddress, commands, reports, agent, disk, clockFile, logFile };
  }

  /** Adds a sled by way of whichever API answers; a call that wasn't answered may have added it. */
  async #registerSled(name: string, address: string): Promise<string> {
    const sledView = z.object({ id: z.string(), name: z.string() });
    return this.persist(async (url) => {
      const path = `${url}/v1/system/hardware/sleds`;
      const response = await fetch(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ name, address, threads: SLED_THREADS, memory: SLED_MEMORY_BYTES }),
        signal: AbortSignal.timeout(10_000),
      });
      const body: unknown = await response.json();
      if (response.status === 201) return sledView.parse(body).id;
      const list = await fetch(`${path}?limit=1000`, { signal: AbortSignal.timeout(10_000) });
      const { items } = z.object({ items: z.array(sledView) }).parse(await list.json());
      const known = items.find((sled) => sled.name === name);
      if (known === undefined) throw new Error(`${name} could not be added: ${JSON.stringify(body)}`);
      return known.id;
    });
  }

  /** Tries something with one API after the other until it succeeds. Throws its last error after five minutes. */
  async persist<Result>(attempt: (apiUrl: string) => Promise<Result>): Promise<Result> {
    const end = performance.now() + PERSIST_TIMEOUT_MS;
    for (;;) {
      const api = this.anyApi();
      try {
        if (api === null) throw new Error('no API runs');
        return await attempt(api.url);
      } catch (error) {
        if (performance.now() > end) throw error;
        await pause(200);
      }
    }
  }

  /** One of the APIs that are up, each in turn; `null`: none is. */
  anyApi(): { readonly url: string; readonly address: string } | null {
    const up = this.apis.filter((api) => api.process.ready);
    this.#turn += 1;
    return up[this.#turn % Math.max(1, up.length)] ?? null;
  }

  /**
   * Kills one process with SIGKILL and starts it again after `downMs` milliseconds. One that has not come up since it was
   * killed last is left alone: on a busy machine nothing else would ever happen; but a kind of process of which none has
   * been killed yet is waited for, so that however busy the machine is each kind dies once. Resolves, when it has been
   * started, with whether it was killed.
   */
  async kill(target: KillTarget, index: number, downMs: number): Promise<boolean> {
    switch (target) {
      case 'postgres': {
        const postgres = this.#postgres;
        if (postgres === null) return false;
        await postgres.kill();
        this.#postgres = null;
        await pause(downMs);
        await this.startPostgres();
        return true;
      }
      case 'temporal':
        return this.#temporal?.disturb(downMs) ?? false;
      case 'worker':
      case 'api':
      case 'sled-agent': {
        // Looked up each time: a sled may be replaced while it is waited for.
        const find = () =>
          target === 'worker'
            ? this.workers[index]
            : target === 'api'
              ? this.apis[index]?.process
              : this.sleds[index]?.agent;
        if (!this.#killed.has(target))
          await waitUntil(() => find()?.ready !== false, `${target} ${index} did not come up`, UP_TIMEOUT_MS);
        const victim = find();
        if (!victim?.ready) return false;
        this.#killed.add(target);
        await victim.kill();
        await pause(downMs);
        if (this.#mayRun(victim)) victim.start();
        return true;
      }
    }
  }

  /** Stops a worker or an API for as long as `meanwhile` takes. Resolves, when it goes on, with whether it ran. */
  async freeze(target: FreezeTarget, index: number, meanwhile: () => Promise<void>): Promise<boolean> {
    const victim = target === 'worker' ? this.workers[index] : this.apis[index]?.process;
    if (!victim?.ready) return false;
    victim.signal('SIGSTOP');
    try {
      await meanwhile();
    } finally {
      victim.signal('SIGCONT');
    }
    return true;
  }

  /** Whether a process is one of those that should run: no worker of a former build, no agent on a server without power. */
  #mayRun(process: Supervisor): boolean {
    if (this.#leftWorkers.includes(process)) return false;
    return ![...this.#off].some(({ agent }) => agent === process);
  }

  /** Has a sled fall silent. Resolves when it is. */
  async silence(sled: SoakSled, how: 'off' | 'frozen' | 'cut'): Promise<void> {
    switch (how) {
      case 'off':
        this.#off.add(sled);
        await sled.agent.kill();
        break;
      case 'frozen':
        sled.agent.signal('SIGSTOP');
        break;
      case 'cut':
        sled.commands.setOpen(false);
        sled.reports.setOpen(false);
        break;
    }
  }

  /** Ends a silence, which lasted for `forMs` milliseconds. */
  restore(sled: SoakSled, how: 'off' | 'frozen' | 'cut', forMs: number): void {
    switch (how) {
      case 'off':
        this.#off.delete(sled);
        sled.agent.start();
        break;
      case 'frozen':
        if (sled.kind === 'fenced' && forMs > LEASE_MS)
          this.#longFreezes.set(sled.agent, (this.#longFreezes.get(sled.agent) ?? 0) + 1);
        sled.agent.signal('SIGCONT');
        break;
      case 'cut':
        sled.commands.setOpen(true);
        sled.reports.setOpen(true);
        break;
    }
  }

  /** Another server takes the place of one that was expunged. */
  async replaceSled(lost: SoakSled): Promise<void> {
    const index = this.sleds.indexOf(lost);
    if (index < 0) return;
    this.retired.push(lost);
    this.sleds[index] = await this.#addSled(lost.kind);
  }

  /** Sets a sled's wall clock; 0 is right. */
  async setClock(sled: SoakSled, shiftMs: number): Promise<void> {
    await writeFile(sled.clockFile, String(shiftMs));
  }

  /**
   * Stops processes of PostgreSQL for as long as `meanwhile` takes. `pids`: those of the connections to stop. Resolves, when
   * they go on, with whether there was a server.
   */
  async freezePostgres(
    what: 'connections' | 'postmaster' | 'server',
    pids: readonly number[],
    meanwhile: () => Promise<void>,
  ): Promise<boolean> {
    const postgres = this.#postgres;
    if (postgres === null) return false;
    const frozen = what === 'connections' ? pids : what === 'postmaster' ? [postgres.pid] : familyOf(postgres.pid);
    for (const pid of frozen) this.#frozenPids.add(pid);
    signalAll(frozen, 'SIGSTOP');
    try {
      await meanwhile();
    } finally {
      signalAll(frozen, 'SIGCONT');
      for (const pid of frozen) this.#frozenPids.delete(pid);
    }
    return true;
  }

  /** The workers of a new build take the place of those that run. Resolves when the old ones have ended; nobody is promoted. */
  async deploy(): Promise<void> {
    this.#builds.push(`soak-${this.#builds.length + 1}`);
    const { build } = this;
    await Promise.all(
      this.workers.map(async (old, index) => {
        this.#leftWorkers.push(old);
        const next = this.#worker(`worker-${index + 1}-${build}`, build);
        this.workers[index] = next;
        await old.stop(WORKER_STOP_TIMEOUT_MS);
        next.start();
      }),
    );
  }

  /** Promotes the build whose workers run, as an operator does, until it succeeds. Throws after some minutes. */
  async promote(): Promise<void> {
    await this.persist(async () => {
      const { code, stderr } = await runCommand(['deployment', 'promote', this.build], {
        env: { DATABASE_URL: this.#databaseUrl, ...this.#temporalEnvironment },
      });
      if (code !== 0) throw new Error(`build ${this.build} could not be promoted: ${stderr}`);
    });
  }

  /**
   * Runs a worker of each build that was replaced until it has ended the starts and migrations that it began: they are
   * pinned to it (docs/deploys.md). Returns the builds that never came to that.
   */
  async endOldBuilds(): Promise<string[]> {
    const stuck: string[] = [];
    for (const build of this.#builds.slice(0, -1)) {
      if (!(await this.#hasOpenWork(build))) continue;
      const worker = this.#worker(`worker-of-old-${build}`, build);
      this.#leftWorkers.push(worker);
      worker.start();
      await waitUntil(async () => !(await this.#hasOpenWork(build)), '', OLD_BUILD_TIMEOUT_MS, 1_000).catch(() =>
        stuck.push(build),
      );
      await worker.stop(WORKER_STOP_TIMEOUT_MS);
    }
    return stuck;
  }

  async #hasOpenWork(build: string): Promise<boolean> {
    const connection = await Connection.connect(this.temporal.connection).catch(() => null);
    // Nobody can tell: it is looked at again.
    if (connection === null) return true;
    try {
      const { workflow } = new Client({ connection, namespace: this.temporal.namespace });
      const query = `ExecutionStatus = "Running" AND (WorkflowType = "instanceStart" OR WorkflowType = "instanceMigrate")`;
      for await (const { workflowId, runId } of workflow.list({ query })) {
        const { raw, status } = await workflow.getHandle(workflowId, runId).describe();
        const on = raw.workflowExecutionInfo?.versioningInfo?.deploymentVersion?.buildId;
        if (status.name === 'RUNNING' && on === build) return true;
      }
      return false;
    } catch {
      return true;
    } finally {
      await connection.close();
    }
  }

  /** Notes when agents said that they powered their guests off: between the last look and this one. */
  async #readAgentLogs(): Promise<void> {
    for (const { id, kind, logFile } of [...this.sleds, ...this.retired]) {
      if (kind !== 'fenced') continue;
      const atMs = Date.now();
      const log = await readFile(logFile).catch(() => Buffer.alloc(0));
      const before = this.#readUntil.get(logFile) ?? { bytes: 0, atMs: 0 };
      if (POWERS_OFF.test(log.subarray(before.bytes).toString('utf8')))
        this.ends.push({ sledId: id, fromMs: before.atMs - DEATH_SEEN_MS, untilMs: Date.now() });
      POWERS_OFF.lastIndex = 0;
      this.#readUntil.set(logFile, { bytes: log.length, atMs });
    }
  }

  /** Ends every fault: fair weather, no planted faults, right clocks, room on every disk, everything up and promoted. */
  async calm(): Promise<void> {
    signalAll([...this.#frozenPids], 'SIGCONT');
    for (const sled of [...this.sleds, ...this.retired]) {
      sled.commands.heal();
      sled.reports.heal();
      sled.agent.signal('SIGCONT');
      await sled.disk?.free();
      await this.setClock(sled, 0);
    }
    await this.startPostgres();
    await this.#temporal?.start();
    for (const sled of this.sleds) this.#off.delete(sled);
    for (const one of [...this.workers, ...this.apis.map((api) => api.process), ...this.sleds.map((s) => s.agent)])
      one.start();
    await this.#untilApisAnswer();
    if (this.#builds.length > 1) {
      await this.promote();
      // What a build that was replaced before it was promoted left: where it is stuck, nothing comes to rest.
      await this.endOldBuilds();
    }
    for (const { agentAddress } of this.sleds) {
      await untilItAnswers(`http://${agentAddress}/vmms`, UP_TIMEOUT_MS);
      await fetch(`http://${agentAddress}/test/faults`, { method: 'DELETE' });
    }
  }

  async #untilApisAnswer(): Promise<void> {
    await Promise.all(this.apis.map((api) => untilItAnswers(`${api.url}/v1/system/hardware/sleds`, UP_TIMEOUT_MS)));
  }

  /** What the sled agents' processes have written of their guests. */
  async agentLives(): Promise<AgentLife[]> {
    return Promise.all(
      this.#lives.map(async ({ sled, file, killedAtMs }) => ({
        sled,
        killedAtMs,
        log: await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
          // An agent that never ran a guest has written nothing.
          if (error.code === 'ENOENT') return '';
          throw error;
        }),
      })),
    );
  }

  /** Stops everything in order. Returns the names of the processes that had to be killed. */
  async stop(): Promise<string[]> {
    clearInterval(this.#reading);
    const killed: string[] = [];
    const stop = async (one: Supervisor) => {
      if (!(await one.stop(STOP_TIMEOUT_MS))) killed.push(one.name);
    };
    const sleds = [...this.sleds, ...this.retired];
    signalAll([...this.#frozenPids], 'SIGCONT');
    for (const { agent } of sleds) agent.signal('SIGCONT');
    await Promise.all(this.apis.map((api) => stop(api.process)));
    await Promise.all([...this.workers, ...this.#leftWorkers].map(stop));
    await Promise.all(sleds.map((sled) => stop(sled.agent)));
    await Promise.all(sleds.flatMap((sled) => [sled.commands.close(), sled.reports.close()]));
    await Promise.all(this.#disks.map((disk) => disk.close()));
    await this.#temporal?.stop();
    await this.#postgres?.stop();
    return killed;
  }
}

/** Waits until something answers HTTP at `url`. Throws when nothing did within `timeoutMs` (milliseconds). */
async function untilItAnswers(url: string, timeoutMs: number): Promise<void> {
  await waitUntil(
    () =>
      fetch(url, { signal: AbortSignal.timeout(2_000) }).then(
        async (response) => {
          await response.arrayBuffer();
          return true;
        },
        () => false,
      ),
    `${url} did not answer within ${timeoutMs / 1000} s`,
    timeoutMs,
    100,
  );
}
