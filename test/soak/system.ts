/**
 * The system under the soak: PostgreSQL, the Temporal server, workers, APIs and sled agents, each a process of its own,
 * with a network between the APIs and workers on one side and the sled agents on the other.
 */
import { randomInt } from 'node:crypto';
import { chmod, mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { migrateDatabase } from '../../db/connect.ts';
import { freePort, waitUntil } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgresAgain } from '../../stack/embedded-postgres.ts';
import { findTemporalBinary, startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { plainTemporal, type TemporalSettings } from '../../temporal/connection.ts';
import { spawnMooring } from '../support/command.ts';
import { Supervisor } from '../support/supervisor.ts';
import { type Link, type LinkCounts, openLink } from './network.ts';
import type { KillTarget } from './plan.ts';
import type { AgentLife } from './witness.ts';

export interface SystemOptions {
  readonly seed: number;
  readonly workers: number;
  readonly apis: number;
  readonly sleds: number;
  readonly print: (message: string) => void;
}

/** A sled's place in the rack: when its server burns down, another one takes it. */
export interface SoakSled {
  readonly name: string;
  readonly id: string;
  /** `ip:port` of the agent itself, without the network in between. */
  readonly agentAddress: string;
  readonly commands: Link;
  readonly reports: Link;
  readonly agent: Supervisor;
}

/** When a sled's agent died, for whom it may concern, in milliseconds since the epoch. */
export interface AgentDeath {
  readonly sledId: string;
  readonly atMs: number;
}

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
  readonly deaths: AgentDeath[] = [];
  readonly #options: SystemOptions;
  readonly #lives: { sled: string; file: string; killedAtMs: number | null }[] = [];
  readonly #retired: SoakSled[] = [];
  readonly #killed = new Set<KillTarget>();
  readonly #net = `127.${randomInt(1, 255)}.${randomInt(0, 255)}`;
  #postgres: EmbeddedPostgres | null = null;
  #postgresPort = 0;
  #databaseUrl = '';
  #temporal: TemporalServer | null = null;
  #temporalPort = 0;
  #temporalBinary = '';
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

  get temporal(): TemporalSettings {
    return plainTemporal(`127.0.0.1:${this.#temporalPort}`);
  }

  /** What the network did so far. */
  get messages(): LinkCounts {
    const links = [...this.sleds, ...this.#retired].flatMap(({ commands, reports }) => [commands, reports]);
    const sum = (count: keyof LinkCounts) => links.reduce((total, link) => total + link.counts[count], 0);
    return { messages: sum('messages'), delayed: sum('delayed'), duplicated: sum('duplicated'), lost: sum('lost') };
  }

  /** How often a process ended although nobody ended it, by its name. */
  get endedByThemselves(): Map<string, number> {
    const all = [...this.workers, ...this.apis.map((api) => api.process), ...this.sleds.map((sled) => sled.agent)];
    return new Map(all.filter((one) => one.endedByItself > 0).map((one) => [one.name, one.endedByItself]));
  }

  async #bringUp(): Promise<void> {
    const { workers, apis, sleds, print } = this.#options;
    this.#postgresPort = await freePort();
    await this.startPostgres();
    await migrateDatabase(this.#databaseUrl);
    print(`PostgreSQL on port ${this.#postgresPort}`);
    this.#temporalBinary = (await findTemporalBinary()).path;
    this.#temporalPort = await freePort();
    await this.startTemporal();
    print(`Temporal at 127.0.0.1:${this.#temporalPort}`);
    for (let index = 0; index < workers; index++) this.workers.push(this.#process(`worker-${index + 1}`, ['worker']));
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
    for (let index = 0; index < sleds; index++) this.sleds.push(await this.#addSled());
    print(`${sleds} sleds`);
  }

  #process(name: string, args: string[]): Supervisor {
    const logFile = join(this.dataDir, `${name}.log`);
    const env = {
      DATABASE_URL: this.#databaseUrl,
      TEMPORAL_ADDRESS: `127.0.0.1:${this.#temporalPort}`,
      TEMPORAL_NAMESPACE: 'default',
      MOORING_LOG_LEVEL: 'warn',
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

  /** Starts the Temporal server on its data, if it isn't running. */
  async startTemporal(): Promise<void> {
    if (this.#temporal !== null) return;
    for (let attempt = 1; this.#temporal === null; attempt++) {
      try {
        this.#temporal = await startTemporalServer({
          binary: this.#temporalBinary,
          port: this.#temporalPort,
          uiPort: null,
          dbFilename: join(this.dataDir, 'temporal.db'),
          logFile: join(this.dataDir, 'temporal.log'),
        });
      } catch (error) {
        if (attempt >= 5) throw error;
        await pause(300);
      }
    }
  }

  async #addSled(): Promise<SoakSled> {
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
      receiver: () => this.#anyApi()?.address ?? null,
    });
    let starts = 0;
    let id: string | null = null;
    const lifeOf = () => this.#lives.filter((life) => life.sled === name).at(-1);
    const guestLogFile = () => join(this.dataDir, `guests-${name}-${starts + 1}.jsonl`);
    const logFile = join(this.dataDir, `${name}.log`);
    const args = () => [
      ...['sled-agent', '--name', name, '--address', agentAddress, '--control-plane', `http://${reports.address}`],
      ...['--threads', String(SLED_THREADS), '--memory', String(SLED_MEMORY_BYTES)],
      ...['--transition-ms', String(TRANSITION_MS), '--guest-log', guestLogFile(), '--test-endpoints'],
    ];
    const agent = new Supervisor({
      name,
      spawn: () => spawnMooring(args(), { logFile }),
      logFile,
      restartAfterMs: RESTART_AFTER_MS,
      onStart: () => {
        this.#lives.push({ sled: name, file: guestLogFile(), killedAtMs: null });
        starts += 1;
        up = true;
      },
      onKill: () => {
        const life = lifeOf();
        if (life !== undefined) life.killedAtMs = Date.now();
      },
      onEnd: () => {
        up = false;
        commands.cut();
        const life = lifeOf();
        if (life !== undefined) life.killedAtMs ??= Date.now();
        if (id !== null) this.deaths.push({ sledId: id, atMs: Date.now() });
      },
    });
    agent.start();
    await untilItAnswers(`http://${agentAddress}/vmms`, UP_TIMEOUT_MS);
    id = await this.#registerSled(name, commands.address);
    return { name, id, agentAddress, commands, reports, agent };
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
      const api = this.#anyApi();
      try {
        if (api === null) throw new Error('no API runs');
        return await attempt(api.url);
      } catch (error) {
        if (performance.now() > end) throw error;
        await pause(200);
      }
    }
  }

  #anyApi() {
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
      case 'temporal': {
        const temporal = this.#temporal;
        if (temporal === null) return false;
        await temporal.kill();
        this.#temporal = null;
        await pause(downMs);
        await this.startTemporal();
        return true;
      }
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
        victim.start();
        return true;
      }
    }
  }

  /** A server burns down: its agent is dead for good before the operator says so; another sled takes its place. */
  async replaceSled(index: number): Promise<void> {
    const lost = this.sleds[index];
    if (lost === undefined) return;
    await lost.agent.kill();
    await this.persist(async (url) => {
      const response = await fetch(`${url}/v1/system/hardware/sleds/${lost.id}/expunge`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ sled_powered_off: true }),
        signal: AbortSignal.timeout(15_000),
      });
      await response.arrayBuffer();
      if (!response.ok) throw new Error(`${lost.name} could not be expunged: ${response.status}`);
    });
    this.#retired.push(lost);
    this.sleds[index] = await this.#addSled();
    await Promise.all([lost.commands.close(), lost.reports.close()]);
  }

  /** Ends every fault: fair weather, no planted faults, everything up. */
  async calm(): Promise<void> {
    for (const { commands, reports } of this.sleds) {
      commands.setWeather(null);
      reports.setWeather(null);
    }
    await this.startPostgres();
    await this.startTemporal();
    for (const one of [...this.workers, ...this.apis.map((api) => api.process), ...this.sleds.map((s) => s.agent)])
      one.start();
    await this.#untilApisAnswer();
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
    const killed: string[] = [];
    const stop = async (one: Supervisor) => {
      if (!(await one.stop(STOP_TIMEOUT_MS))) killed.push(one.name);
    };
    await Promise.all(this.apis.map((api) => stop(api.process)));
    await Promise.all(this.workers.map(stop));
    await Promise.all(this.sleds.map((sled) => stop(sled.agent)));
    await Promise.all(this.sleds.flatMap((sled) => [sled.commands.close(), sled.reports.close()]));
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
