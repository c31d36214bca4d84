/** A whole installation in one process: PostgreSQL, Temporal with its Web UI, a worker, the API and sleds. */
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { platform } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { type RunningApi, startApi } from '../api/server.ts';
import { MooringClient } from '../client/mooring-client.ts';
import { migrateDatabase, requireCurrentSchema } from '../db/migrate.ts';
import { freePort } from '../platform/host/child-process.ts';
import { withinTime } from '../platform/host/with-limit.ts';
import { Authority } from '../platform/identity/authority.ts';
import { setting } from '../platform/settings.ts';
import { createLog } from '../platform/telemetry/log.ts';
import { plainTemporal, readTemporalSettings, type TemporalSettings } from '../temporal/connection.ts';
import { type RunningWorker, startWorker } from '../worker/worker.ts';
import { startEmbeddedPostgres } from './embedded-postgres.ts';
import { type StackFile, writeStackFile } from './stack-file.ts';
import { API_OPTIONS, pick, type StackOptions, type StackSetup, WORKER_OPTIONS } from './stack-options.ts';
import { type StackSled, startSleds } from './stack-sleds.ts';
import { ensureStackToken, type StackToken } from './stack-token.ts';
import { findTemporalBinary } from './temporal-binary.ts';
import { startTemporalServer } from './temporal-server.ts';

/** A stack that is up. */
export interface RunningStack {
  readonly apiUrl: string;
  readonly temporalAddress: string;
  readonly temporal: TemporalSettings;
  /** Where the console is; `null` where it was not built. */
  readonly consoleUrl: string | null;
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

/** How long one part may take to stop before the next one is stopped, in milliseconds. */
const STOP_TIMEOUT_MS = 15_000;

/** Brings up a stack. When a part fails to start, what was started is stopped and its error is thrown. */
export async function startStack(options: StackOptions): Promise<RunningStack> {
  const stops: StackSetup['stops'] = [];
  const stop = async () => {
    for (const stopPart of stops.splice(0).reverse()) await withinTime(stopPart(), STOP_TIMEOUT_MS);
  };
  try {
    return { ...(await bringUp(options, stops)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Starts the parts, each after those that it needs. */
async function bringUp(options: StackOptions, stops: StackSetup['stops']): Promise<Omit<RunningStack, 'stop'>> {
  const { env = process.env, onProgress: report = () => {} } = options;
  const dataDir = options.dataDir === undefined ? await temporaryDirectory() : resolve(options.dataDir);
  await mkdir(dataDir, { recursive: true });
  if (options.dataDir === undefined) stops.push(() => rm(dataDir, { recursive: true, force: true }));
  const setup: StackSetup = { options, env, dataDir, stops, report };

  const goesOn = () => options.signal?.throwIfAborted();

  const postgres = await findOrStartPostgres(setup);
  goesOn();
  const databaseUrl = postgres.url;
  if (postgres.embedded) await migrateDatabase(databaseUrl);
  else if (options.migrate ?? true) await migrateDatabase(databaseUrl, { onProgress: report });
  else await requireCurrentSchema(databaseUrl, report);
  const adminToken = await ensureStackToken(dataDir, databaseUrl);
  goesOn();
  const { settings: temporal, uiUrl: temporalUiUrl, embedded } = await findOrStartTemporal(setup);
  const temporalAddress = temporal.connection.address ?? '';

  goesOn();
  const authorityDir = options.sledTls ? join(dataDir, 'authority') : undefined;
  const authority =
    authorityDir === undefined ? null : await Authority.openOrCreate(authorityDir, options.certificateLifetimeMs);
  const worker = await startWorker({
    ...pick(options, WORKER_OPTIONS),
    authority: authority ?? undefined,
    databaseUrl,
    temporal,
    alone: embedded,
    log: createLog('worker', setting('MOORING_LOG_LEVEL', env) ?? 'error'),
  });
  stops.push(worker.stop);
  report('worker');
  goesOn();
  const api = await startApi({
    ...pick(options, API_OPTIONS),
    databaseUrl,
    temporal,
    temporalUiUrl,
    host: '127.0.0.1',
    port: options.apiPort ?? 0,
    authentication: options.requireTokens === true ? 'tokens' : 'open',
    log: createLog('api', setting('MOORING_LOG_LEVEL', env) ?? 'error'),
    // On the loopback address of one machine, agents that others wrote need no certificates.
    plainSleds: authority === null,
    sledListener: authority === null ? undefined : { authority, ...(await sledListenerAt(dataDir)) },
  });
  stops.push(api.stop);
  report(`API at ${api.url}${api.sledUrl === null ? '' : `, for sleds at ${api.sledUrl}`}`);

  goesOn();
  const client = new MooringClient({ url: api.url, token: adminToken.secret });
  const sleds = await startSleds(setup, api, client, authority !== null);
  goesOn();
  await announce(setup, {
    api_url: api.url,
    database_url: databaseUrl,
    temporal_address: temporalAddress,
    temporal_namespace: temporal.namespace,
    token_file: adminToken.file,
    authority_dir: authorityDir,
  });
  return {
    apiUrl: api.url,
    temporalAddress,
    temporal,
    consoleUrl: api.consoleUrl,
    temporalUiUrl,
    databaseUrl,
    adminToken,
    embedded: { postgres: postgres.embedded, temporal: embedded },
    worker,
    api,
    sleds,
    authority,
  };
}

/** The PostgreSQL that the environment names, else one of the stack's own. */
async function findOrStartPostgres(setup: StackSetup): Promise<{ url: string; embedded: boolean }> {
  const { options, env, dataDir, stops, report } = setup;
  const url = setting('DATABASE_URL', env);
  if (url !== undefined) return { url, embedded: false };
  const folder = join(dataDir, 'postgres');
  await options.preparePostgres?.(folder);
  const postgres = await startEmbeddedPostgres({ dataDir: folder, durable: options.dataDir !== undefined });
  stops.push(postgres.stop);
  report(`PostgreSQL (embedded) on port ${postgres.port}`);
  return { url: postgres.url, embedded: true };
}

/** The Temporal that the environment names, else one of the stack's own; only of its own the Web UI is known. */
async function findOrStartTemporal(
  setup: StackSetup,
): Promise<{ settings: TemporalSettings; uiUrl: string | null; embedded: boolean }> {
  const { options, env, dataDir, stops, report } = setup;
  if (env.TEMPORAL_ADDRESS !== undefined && env.TEMPORAL_ADDRESS !== '') {
    const settings = readTemporalSettings(env);
    report(`Temporal at ${settings.connection.address}, namespace ${settings.namespace}`);
    return { settings, uiUrl: null, embedded: false };
  }
  const binary = await findTemporalBinary(env);
  const server = await startTemporalServer({
    binary: binary.path,
    uiPort: options.temporalUiPort,
    dbFilename: options.dataDir === undefined ? undefined : join(dataDir, 'temporal.db'),
    logFile: join(dataDir, 'temporal.log'),
    dynamicConfig: options.temporalDynamicConfig,
  });
  stops.push(server.stop);
  report(`Temporal (from ${binary.source}) at ${server.address}, Web UI at ${server.uiUrl}`);
  return { settings: plainTemporal(server.address), uiUrl: server.uiUrl, embedded: true };
}

/** Writes the stack file, by which commands of this machine find the stack. */
async function announce({ env, stops, report }: StackSetup, stack: Omit<StackFile, 'pid'>): Promise<void> {
  try {
    stops.push(await writeStackFile(stack, env));
  } catch (error) {
    // A stack without it runs as well; only commands that look for it miss it.
    report(`no stack file (${(error as Error).message}): "mooring doctor" needs DATABASE_URL and TEMPORAL_ADDRESS`);
  }
}

/** PostgreSQL's user must be able to reach it, also when this process runs as root. */
async function temporaryDirectory(): Promise<string> {
  const directory = await mkdtemp(join(platform() === 'win32' ? (process.env.TEMP ?? '.') : '/var/tmp', 'mooring-'));
  await chmod(directory, 0o711);
  return directory;
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
