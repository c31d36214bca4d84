/** A whole installation in one process: PostgreSQL, Temporal with its Web UI, a worker, the API and sleds. */
import { randomInt } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, platform, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import type { RequestLimits } from '../api/limits.ts';
import { type RunningApi, startApi } from '../api/server.ts';
import { migrateDatabase } from '../db/connect.ts';
import type { ReconcilerName } from '../model/reconcilers.ts';
import { freePort } from '../platform/host/child-process.ts';
import { Authority } from '../platform/identity/authority.ts';
import { createLog } from '../platform/telemetry/log.ts';
import { loadIdentity, type StoredIdentity } from '../sled-agent/identity-file.ts';
import { joinSled } from '../sled-agent/join.ts';
import { prepareQemu } from '../sled-agent/qemu/prepare-qemu.ts';
import { QemuHypervisor } from '../sled-agent/qemu-hypervisor.ts';
import { type SledAgentHandle, startSledAgent } from '../sled-agent/server.ts';
import { SledIdentity } from '../sled-agent/sled-identity.ts';
import { plainTemporal, readTemporalSettings, type TemporalSettings } from '../temporal/connection.ts';
import { sledInviteView } from '../wire/sled-identity.ts';
import { type RunningWorker, startWorker, type TestInterceptors, type WorkerOptions } from '../worker/worker.ts';
import { startEmbeddedPostgres } from './embedded-postgres.ts';
import { writeStackFile } from './stack-file.ts';
import { ensureStackToken, type StackToken } from './stack-token.ts';
import { cacheDirectory, findTemporalBinary, startTemporalServer } from './temporal-server.ts';

export interface StackOptions {
  /** Kept between runs; a throw-away directory when absent. */
  readonly dataDir?: string | undefined;
  /** 0 chooses a free one. */
  readonly apiPort?: number;
  readonly temporalUiPort?: number;
  /** How many sleds. */
  readonly sleds: number;
  /** What runs their VMs; simulated by default. */
  readonly hypervisor?: 'simulated' | 'qemu';
  /** How fast a real VM's migration may be, in bytes per second; without limit when absent. */
  readonly migrationBandwidth?: number;
  /** How long a transition of a simulated VM takes, in milliseconds. */
  readonly transitionMs?: number;
  readonly updates?: boolean;
  readonly reconcileEveryMs?: number;
  readonly reconcilersOff?: readonly ReconcilerName[];
  readonly registerTimeoutMs?: number;
  readonly waitMs?: number;
  /** Asks every operator for a token; by default a request without one is this machine's operator's. */
  readonly requireTokens?: boolean;
  readonly limits?: Partial<RequestLimits>;
  /** How often the API writes down that leases can be renewed, in milliseconds; 0 never. */
  readonly leaseBeatMs?: number;
  /** `ip:port` where the worker shows its metrics; nowhere when absent. */
  readonly metricsListen?: string | undefined;
  /** How often sled agents ask where instances live, in milliseconds. */
  readonly networkPollMs?: number;
  /** Sleds join by invitation and speak by certificates, and no sled is added without; default false. */
  readonly sledTls?: boolean;
  /** How long their certificates are good, in milliseconds. */
  readonly certificateLifetimeMs?: number;
  /** Serves the sled agents' endpoints below `/test/`. */
  readonly testEndpoints?: boolean;
  /** Dynamic configuration of the embedded Temporal server; for tests and recordings. */
  readonly temporalDynamicConfig?: Readonly<Record<string, string | number>>;
  readonly env?: NodeJS.ProcessEnv;
  /** For tests alone. */
  readonly testInterceptors?: TestInterceptors;
  /** The workflows to run, bundled before; for tests. */
  readonly bundle?: WorkerOptions['bundle'];
  /** Fills the folder of the embedded PostgreSQL before it is started; for tests. */
  readonly preparePostgres?: (dataDir: string) => Promise<void>;
  /** Hears what is being brought up, in words for people. */
  readonly onProgress?: (message: string) => void;
}

export interface StackSled {
  readonly id: string;
  readonly name: string;
  readonly agent: SledAgentHandle;
}

export interface RunningStack {
  readonly apiUrl: string;
  readonly temporalAddress: string;
  readonly temporal: TemporalSettings;
  /** `null` when the Temporal server is not ours. */
  readonly temporalUiUrl: string | null;
  readonly databaseUrl: string;
  /** The stack's own admin token, and the file that holds it. */
  readonly adminToken: StackToken;
  readonly embedded: { readonly postgres: boolean; readonly temporal: boolean };
  readonly worker: RunningWorker;
  readonly api: RunningApi;
  readonly sleds: readonly StackSled[];
  /** The authority that its sleds have joined; `null` when they speak plain HTTP. */
  readonly authority: Authority | null;
  /** Stops everything, in reverse order. */
  stop(): Promise<void>;
}

/** How long one part may take to stop before the next one is told, in milliseconds. */
const STOP_TIMEOUT_MS = 15_000;
/** What a simulated sled says it has. */
const SIMULATED_SLED = { threads: 64, memoryBytes: 256 * 1024 ** 3 };
const MIB = 1024 ** 2;

/** Brings up a stack. When a part fails to start, what was started is stopped and its error is thrown. */
export async function startStack(options: StackOptions): Promise<RunningStack> {
  const env = options.env ?? process.env;
  const say = options.onProgress ?? (() => {});
  const stops: { name: string; stop: () => Promise<unknown> }[] = [];
  const stop = async () => {
    for (const part of stops.splice(0).reverse()) await withinTime(part.stop(), STOP_TIMEOUT_MS);
  };
  try {
    const dataDir = options.dataDir === undefined ? await temporaryDirectory() : resolve(options.dataDir);
    await mkdir(dataDir, { recursive: true });
    if (options.dataDir === undefined)
      stops.push({ name: 'data', stop: () => rm(dataDir, { recursive: true, force: true }) });

    let databaseUrl = env.DATABASE_URL;
    const ownPostgres = databaseUrl === undefined || databaseUrl === '';
    if (databaseUrl === undefined || databaseUrl === '') {
      await options.preparePostgres?.(join(dataDir, 'postgres'));
      const postgres = await startEmbeddedPostgres({
        dataDir: join(dataDir, 'postgres'),
        durable: options.dataDir !== undefined,
      });
      stops.push({ name: 'PostgreSQL', stop: postgres.stop });
      databaseUrl = postgres.url;
      say(`PostgreSQL (embedded) on port ${postgres.port}`);
    }
    await migrateDatabase(databaseUrl);
    const adminToken = await ensureStackToken(dataDir, databaseUrl);

    let temporal: TemporalSettings;
    let temporalUiUrl: string | null = null;
    const ownTemporal = env.TEMPORAL_ADDRESS === undefined || env.TEMPORAL_ADDRESS === '';
    if (ownTemporal) {
      const binary = await findTemporalBinary(env);
      const server = await startTemporalServer({
        binary: binary.path,
        ...(options.temporalUiPort === undefined ? {} : { uiPort: options.temporalUiPort }),
        ...(options.dataDir === undefined ? {} : { dbFilename: join(dataDir, 'temporal.db') }),
        logFile: join(dataDir, 'temporal.log'),
        ...(options.temporalDynamicConfig === undefined ? {} : { dynamicConfig: options.temporalDynamicConfig }),
      });
      stops.push({ name: 'Temporal', stop: server.stop });
      temporal = plainTemporal(server.address);
      temporalUiUrl = server.uiUrl;
      say(`Temporal (from ${binary.source}) at ${server.address}, Web UI at ${server.uiUrl}`);
    } else {
      temporal = readTemporalSettings(env);
      say(`Temporal at ${temporal.connection.address}, namespace ${temporal.namespace}`);
    }

    const authority = options.sledTls
      ? await Authority.openOrCreate(join(dataDir, 'authority'), options.certificateLifetimeMs)
      : undefined;
    const worker = await startWorker({
      authority,
      databaseUrl,
      temporal,
      alone: ownTemporal,
      log: createLog('worker', env.MOORING_LOG_LEVEL ?? 'error'),
      metricsListen: options.metricsListen,
      ...(options.updates === undefined ? {} : { updates: options.updates }),
      ...(options.reconcileEveryMs === undefined ? {} : { reconcileEveryMs: options.reconcileEveryMs }),
      ...(options.reconcilersOff === undefined ? {} : { reconcilersOff: options.reconcilersOff }),
      ...(options.bundle === undefined ? {} : { bundle: options.bundle }),
      ...(options.testInterceptors === undefined ? {} : { testInterceptors: options.testInterceptors }),
    });
    stops.push({ name: 'worker', stop: worker.stop });
    say('worker');
    const api = await startApi({
      databaseUrl,
      temporal,
      temporalUiUrl,
      host: '127.0.0.1',
      port: options.apiPort ?? 0,
      authentication: options.requireTokens === true ? 'tokens' : 'open',
      ...(options.limits === undefined ? {} : { limits: options.limits }),
      log: createLog('api', env.MOORING_LOG_LEVEL ?? 'error'),
      // On the loopback address of one machine, agents that others wrote need no certificates.
      plainSleds: authority === undefined,
      ...(authority === undefined ? {} : { sledListener: { authority, ...(await sledListenerAt(dataDir)) } }),
      ...(options.waitMs === undefined ? {} : { waitMs: options.waitMs }),
      ...(options.leaseBeatMs === undefined ? {} : { leaseBeatMs: options.leaseBeatMs }),
      ...(options.registerTimeoutMs === undefined ? {} : { registerTimeoutMs: options.registerTimeoutMs }),
    });
    stops.push({ name: 'API', stop: api.stop });
    say(`API at ${api.url}${api.sledUrl === null ? '' : `, for sleds at ${api.sledUrl}`}`);

    const sleds: StackSled[] = [];
    const qemu =
      options.hypervisor === 'qemu' && options.sleds > 0 ? await prepareQemu({ cacheDir: cacheDirectory(env) }) : null;
    if (qemu !== null)
      say(`QEMU ${qemu.program.version} with ${qemu.accelerator.toUpperCase()} (${qemu.reason}) runs the VMs`);
    // Real sleds of one machine share what it has.
    const size =
      qemu === null
        ? SIMULATED_SLED
        : {
            threads: availableParallelism(),
            memoryBytes: Math.floor(totalmem() / 2 / options.sleds / MIB) * MIB,
          };
    const addresses = await sledAddresses(dataDir, options.sleds);
    for (const [index, listen] of addresses.entries()) {
      const name = `sled-${index + 1}`;
      const folder = join(dataDir, name);
      const joined =
        authority === undefined ? null : await joinedSled(api.url, adminToken.secret, folder, name, listen, size);
      const agent = await startSledAgent({
        name,
        listen,
        controlPlaneUrl: api.sledUrl ?? api.url,
        ...(joined === null ? {} : { identity: new SledIdentity(joined, folder, say) }),
        ...size,
        ...(qemu === null
          ? {}
          : {
              dataDir: folder,
              makeHypervisor: (faults, agentAddress, transport) =>
                new QemuHypervisor({
                  ...qemu,
                  dataDir: folder,
                  faults,
                  agentAddress,
                  transport,
                  endWithAgent: true,
                  migrationBandwidth: options.migrationBandwidth,
                }),
            }),
        ...(qemu === null && options.dataDir !== undefined ? { dataDir: folder } : {}),
        ...(options.transitionMs === undefined ? {} : { transitionMs: options.transitionMs }),
        ...(options.networkPollMs === undefined ? {} : { networkPollMs: options.networkPollMs }),
        ...(options.testEndpoints === undefined ? {} : { testEndpoints: options.testEndpoints }),
      });
      stops.push({ name, stop: agent.stop });
      const id = joined?.sledId ?? (await registerSled(api.url, adminToken.secret, name, agent.address, size));
      sleds.push({ id, name, agent });
      say(`${name} (${qemu === null ? 'simulated' : 'QEMU'}) at ${agent.address}`);
    }
    await writeStackFile(
      {
        api_url: api.url,
        database_url: databaseUrl,
        temporal_address: temporal.connection.address ?? '',
        temporal_namespace: temporal.namespace,
        token_file: adminToken.file,
        ...(authority === undefined ? {} : { authority_dir: join(dataDir, 'authority') }),
      },
      env,
    ).then(
      (remove) => stops.push({ name: 'stack file', stop: remove }),
      // A stack without it runs as well; only commands that look for it miss it.
      (error: Error) =>
        say(`no stack file (${error.message}): "mooring doctor" needs DATABASE_URL and TEMPORAL_ADDRESS`),
    );
    return {
      apiUrl: api.url,
      temporalAddress: temporal.connection.address ?? '',
      temporal,
      temporalUiUrl,
      databaseUrl,
      adminToken,
      embedded: { postgres: ownPostgres, temporal: ownTemporal },
      worker,
      api,
      sleds,
      authority: authority ?? null,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** PostgreSQL's user must be able to reach it, also when this process runs as root. */
async function temporaryDirectory(): Promise<string> {
  const directory = await mkdtemp(join(platform() === 'win32' ? (process.env.TEMP ?? '.') : '/var/tmp', 'mooring-'));
  await chmod(directory, 0o711);
  return directory;
}

const addressFile = z.array(z.string());

/**
 * Where the sleds listen: each on a loopback address of its own where the system has them, so that the ports
 * of its VMs are its own; the same ones again on the same data.
 */
async function sledAddresses(dataDir: string, count: number): Promise<string[]> {
  const file = join(dataDir, 'sled-addresses.json');
  const known = addressFile.catch([]).parse(JSON.parse(await readFile(file, 'utf8').catch(() => '[]')));
  const net = platform() === 'linux' ? `127.${randomInt(1, 255)}.${randomInt(0, 255)}` : null;
  while (known.length < count) {
    const ip = net === null ? '127.0.0.1' : `${net}.${known.length + 1}`;
    known.push(`${ip}:${await freePort(ip)}`);
  }
  await writeFile(file, JSON.stringify(known));
  return known.slice(0, count);
}

const portFile = z.object({ port: z.number().int() });

/** Where sleds reach the API: the same port again on the same data, since each remembers it from its invitation. */
async function sledListenerAt(dataDir: string): Promise<{ host: string; port: number }> {
  const file = join(dataDir, 'sled-listener.json');
  const known = portFile.safeParse(JSON.parse(await readFile(file, 'utf8').catch(() => 'null')));
  const port = known.success ? known.data.port : await freePort();
  await writeFile(file, JSON.stringify({ port }));
  return { host: '127.0.0.1', port };
}

/** The identity of a sled of this stack: the one that its folder holds, or a new one by an invitation. */
async function joinedSled(
  apiUrl: string,
  token: string,
  folder: string,
  name: string,
  address: string,
  size: { threads: number; memoryBytes: number },
): Promise<StoredIdentity> {
  const known = await loadIdentity(folder);
  if (known !== null) return known;
  const response = await fetch(`${apiUrl}/v1/system/hardware/sled-invites`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: JSON.stringify({ name }),
  });
  if (!response.ok) throw new Error(`${name} could not be invited: ${await response.text()}`);
  const invited = sledInviteView.parse(await response.json());
  return joinSled({ token: invited.token, folder, address, ...size });
}

const sledsPage = z.object({ items: z.array(z.object({ id: z.string(), name: z.string(), address: z.string() })) });

async function registerSled(
  apiUrl: string,
  token: string,
  name: string,
  address: string,
  { threads, memoryBytes }: { threads: number; memoryBytes: number },
): Promise<string> {
  const sleds = `${apiUrl}/v1/system/hardware/sleds`;
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
  const { items } = sledsPage.parse(await (await fetch(`${sleds}?limit=10000`, { headers })).json());
  const known = items.find((sled) => sled.name === name && sled.address === address);
  if (known !== undefined) return known.id;
  const response = await fetch(sleds, {
    method: 'POST',
    headers,
    body: JSON.stringify({ name, address, threads, memory: memoryBytes }),
  });
  if (!response.ok) throw new Error(`${name} could not be added: ${await response.text()}`);
  return z.object({ id: z.string() }).parse(await response.json()).id;
}

/** Waits for work, but no longer than `ms` milliseconds, and whatever becomes of it. */
export async function withinTime(work: Promise<unknown>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  await Promise.race([
    work.catch(() => {}),
    new Promise((resolve) => {
      timer = setTimeout(resolve, ms);
    }),
  ]);
  clearTimeout(timer);
}
