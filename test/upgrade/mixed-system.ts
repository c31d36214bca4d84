/** A system whose parts may each be of another version: processes on one PostgreSQL and one Temporal, behind one balancer. */
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execPath, platform } from 'node:process';
import { Client, Connection } from '@temporalio/client';
import type { MooringClient } from '../../client/mooring-client.ts';
import { openDatabase } from '../../db/connect.ts';
import { readInstallation } from '../../db/queries/read-installation.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { type EmbeddedPostgres, startEmbeddedPostgresAgain } from '../../stack/embedded-postgres.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { readBuilds } from '../../temporal/deployment.ts';
import { sledInventory } from '../../wire/sled-protocol.ts';
import { type RunningCommand, startProgram } from '../support/command.ts';
import { CuttableProxy } from '../support/cuttable-proxy.ts';
import { loopbackAddress } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';
import type { Build } from './builds.ts';

const THREADS = 64;
const MEMORY = '64GiB';
const MEMORY_BYTES = 64 * 1024 ** 3;
/** Long enough that a change of version can come in the middle of one. */
const TRANSITION_MS = 60;

export interface RunningApi {
  readonly build: Build;
  readonly address: string;
  readonly process: RunningCommand;
  /** Calls that it has not answered yet. */
  calls: number;
}

export interface UpgradableSled {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  readonly data: string;
  agent: RunningCommand;
  build: Build;
}

export class MixedSystem {
  readonly workers: { build: Build; process: RunningCommand }[] = [];
  /** Those that the balancer sends calls to. */
  readonly apis: RunningApi[] = [];
  readonly sleds: UpgradableSled[] = [];
  /** A sled is being emptied: its guests move, and are not to be moved by others. */
  draining = false;
  /** How many drains have begun. */
  drains = 0;
  readonly #parts: Parts;
  readonly #all: RunningCommand[] = [];
  #turn = 0;
  #installation: string | null = null;

  private constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Starts PostgreSQL, empty, and Temporal. Throws, having stopped what it started, when one does not come up. */
  static async start(): Promise<MixedSystem> {
    // PostgreSQL's user must be able to enter it, also when this process runs as root.
    const folder = await mkdtemp(join(platform === 'linux' ? '/var/tmp' : tmpdir(), 'mooring-upgrade-'));
    await chmod(folder, 0o711);
    const ends: (() => Promise<unknown>)[] = [() => rm(folder, { recursive: true, force: true })];
    try {
      const dataDir = join(folder, 'postgres');
      const postgres = await startEmbeddedPostgresAgain({ dataDir, port: await freePort(), durable: false });
      ends.unshift(() => postgres.stop());
      const temporal = await startTemporalServer({
        binary: (await findTemporalBinary()).path,
        uiPort: null,
        dynamicConfig: {
          'matching.wv.VersionDrainageStatusVisibilityGracePeriod': '1s',
          'matching.wv.VersionDrainageStatusRefreshInterval': '1s',
        },
      });
      ends.unshift(() => temporal.stop());
      const connection = await Connection.connect({ address: temporal.address });
      ends.unshift(() => connection.close());
      const balancer = await CuttableProxy.open('127.0.0.1', () => system.nextApi()?.address ?? null);
      ends.unshift(() => balancer.close());
      const client = new Client({ connection });
      const system = new MixedSystem({ folder, postgres, temporal, client, balancer, ends });
      return system;
    } catch (error) {
      for (const end of ends) await end();
      throw error;
    }
  }

  get databaseUrl(): string {
    return this.#parts.postgres.url;
  }
  get temporal(): Client {
    return this.#parts.client;
  }

  /** Runs `mooring` of a version to its end. Throws with what it said when it fails. */
  async run(build: Build, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.#spawn(build, args).done;
    if (code !== 0) throw new Error(`mooring ${args.join(' ')} of ${build.id}: ${stderr}${stdout}`);
    return stdout;
  }

  async addWorker(build: Build): Promise<void> {
    const process = this.#spawn(build, ['worker']);
    await process.untilPrinted(/worker: running/);
    this.workers.push({ build, process });
  }

  /** Stops a version's worker when Temporal says that nothing is left for it. */
  async endWorker(build: Build): Promise<void> {
    await eventually(async () => (await this.statusOf(build)) === 'drained', `build ${build.id} was never drained`);
    const index = this.workers.findIndex((worker) => worker.build === build);
    const [worker] = this.workers.splice(index, 1);
    await mustEndWell(worker?.process, `the worker of ${build.id}`);
  }

  async statusOf(build: Build): Promise<string | undefined> {
    this.#installation ??= await this.#readInstallation();
    return (await readBuilds(this.temporal, this.#installation)).find(({ buildId }) => buildId === build.id)?.status;
  }

  async #readInstallation(): Promise<string> {
    const database = openDatabase(this.databaseUrl, { maxConnections: 1, applicationName: 'mooring-test' });
    try {
      return (await readInstallation(database.db)).id;
    } finally {
      await database.close();
    }
  }

  async addApi(build: Build): Promise<void> {
    const port = await freePort();
    const options = ['--authentication', 'open', '--insecure-sleds', '--port', String(port)];
    const process = this.#spawn(build, ['api', ...options]);
    const address = `127.0.0.1:${port}`;
    await process.untilPrinted(new RegExp(address));
    const isReady = async () => (await fetch(`http://${address}/readyz`).catch(() => null))?.status === 200;
    await eventually(isReady, `the API of ${build.id} was never ready: ${process.output}`);
    this.apis.push({ build, address, process, calls: 0 });
  }

  /** As a balancer does it: no new calls, then those that are on their way end, then the process. */
  async endApi(build: Build): Promise<void> {
    const [api] = this.apis.splice(
      this.apis.findIndex((one) => one.build === build),
      1,
    );
    await eventually(() => api?.calls === 0, `calls to the API of ${build.id} never ended`);
    await mustEndWell(api?.process, `the API of ${build.id}`);
  }

  /** Each in turn. */
  nextApi(): RunningApi | null {
    this.#turn += 1;
    return this.apis[this.#turn % Math.max(1, this.apis.length)] ?? null;
  }

  /** Has somebody call whichever API's turn it is. */
  async call<Result>(
    Caller: typeof MooringClient,
    work: (client: MooringClient, api: RunningApi) => Promise<Result>,
  ): Promise<Result> {
    const api = this.nextApi();
    if (api === null) throw new Error('no API runs');
    api.calls += 1;
    try {
      return await work(new Caller({ url: `http://${api.address}` }), api);
    } finally {
      api.calls -= 1;
    }
  }

  async addSled(build: Build): Promise<void> {
    const name = `s${this.sleds.length + 1}`;
    const ip = loopbackAddress();
    const address = `${ip}:${await freePort(ip)}`;
    const data = join(this.#parts.folder, name);
    const agent = await this.#startAgent(build, name, address, data);
    const { id } = await this.call(build.Client, (client) =>
      client.addSled({ name, address, threads: THREADS, memory: MEMORY_BYTES }),
    );
    this.sleds.push({ id, name, address, data, agent, build });
  }

  /** Empties a sled, has its agent be of another version, and puts it back into service. */
  async changeAgent(sled: UpgradableSled, build: Build): Promise<void> {
    this.draining = true;
    this.drains += 1;
    try {
      await this.call(build.Client, (client) => client.drainSled(sled.id, { parallel: 4 }));
      await eventually(
        () => this.call(build.Client, async (client) => (await client.getDrain(sled.id)).state === 'drained'),
        `${sled.name} was never drained`,
      );
      // What has left is unregistered after.
      await eventually(async () => (await vmmsOn(sled)) === 0, `${sled.name} was never empty`);
      await mustEndWell(sled.agent, `the agent of ${sled.name}`);
      sled.agent = await this.#startAgent(build, sled.name, sled.address, sled.data);
      sled.build = build;
      await this.call(build.Client, (client) => client.setSledPolicy(sled.id, 'provisionable'));
    } finally {
      this.draining = false;
    }
  }

  /** What went wrong that nobody may have seen: processes that ended. */
  ended(): string[] {
    const all = [...this.workers, ...this.apis, ...this.sleds.map(({ agent, build }) => ({ process: agent, build }))];
    return all
      .filter(({ process }) => process.child.exitCode !== null || process.child.signalCode !== null)
      .map(({ process, build }) => `a process of ${build.id} ended by itself: ${process.output}`);
  }

  async stop(): Promise<void> {
    await Promise.all(this.#all.map((process) => process.stop()));
    for (const end of this.#parts.ends) await end();
  }

  async #startAgent(build: Build, name: string, address: string, data: string): Promise<RunningCommand> {
    const agent = this.#spawn(build, [
      ...['sled-agent', '--name', name, '--address', address, '--data', data],
      ...['--control-plane', `http://${this.#parts.balancer.address}`],
      ...['--threads', String(THREADS), '--memory', MEMORY, '--transition-ms', String(TRANSITION_MS)],
    ]);
    await agent.untilPrinted(new RegExp(`sled agent "${name}"`));
    return agent;
  }

  #spawn(build: Build, args: readonly string[]): RunningCommand {
    const started = startProgram(execPath, [build.program, ...args], {
      env: {
        DATABASE_URL: this.databaseUrl,
        TEMPORAL_ADDRESS: this.#parts.temporal.address,
        MOORING_BUILD_ID: build.id,
        MOORING_LOG_LEVEL: 'warn',
      },
    });
    this.#all.push(started);
    return started;
  }
}

interface Parts {
  readonly folder: string;
  readonly postgres: EmbeddedPostgres;
  readonly temporal: TemporalServer;
  readonly client: Client;
  readonly balancer: CuttableProxy;
  /** What stops them, in order. */
  readonly ends: readonly (() => Promise<unknown>)[];
}

async function vmmsOn({ address }: UpgradableSled): Promise<number> {
  const response = await fetch(`http://${address}/vmms`);
  return sledInventory.parse(await response.json()).vmms.length;
}

async function mustEndWell(process: RunningCommand | undefined, who: string): Promise<void> {
  const ended = await process?.stop();
  if (ended?.code !== 0) throw new Error(`${who} ended with ${ended?.code}: ${ended?.stderr}`);
}
