/** A private Temporal server with its Web UI: the Temporal CLI's development server. */
import { spawn } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { Connection } from '@temporalio/client';
import { SEARCH_ATTRIBUTES } from '../model/search-attributes.ts';
import { freePort, guardChild, waitUntil } from '../platform/host/child-process.ts';

const START_TIMEOUT_MS = 60_000;
/** How long one call to a server that comes up may take, in milliseconds. */
const CALL_MS = 5_000;
/** How long closed workflows can be read: an operation for at least a day. */
const RETENTION_SECONDS = 72 * 3600;

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
  const logBegins = (await log?.stat())?.size ?? 0;
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
  // After the listeners: it may end at once.
  await log?.close();
  const address = `127.0.0.1:${port}`;
  let connection: Connection | null = null;
  try {
    await waitUntil(
      async () => {
        if (failure !== null) return true;
        connection = await Connection.connect({ address, connectTimeout: '1s' }).catch(() => null);
        return connection !== null;
      },
      'it did not answer in time',
      START_TIMEOUT_MS,
    );
    if (failure !== null) throw new Error(failure);
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
    const said =
      options.logFile === undefined ? output : (await readFile(options.logFile)).subarray(logBegins).toString();
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(
      `the Temporal server of ${options.binary} did not start: ${why}${said.trim() === '' ? '' : `, and printed: ${said.trim().slice(-1_000)}`}; ` +
        'MOORING_TEMPORAL_BINARY names another Temporal CLI (https://docs.temporal.io/cli)',
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
