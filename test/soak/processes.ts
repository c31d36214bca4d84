/** The processes of a soak: real ones, each started again by its supervisor when it ends, and killed on request. */
import { type ChildProcess, spawn } from 'node:child_process';
import { appendFileSync, closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { guardChild, waitUntil } from '../../platform/host/child-process.ts';

const LAUNCHER = fileURLToPath(new URL('../../cli/mooring.js', import.meta.url));
/** A process that ends by itself comes back after this long, in milliseconds. */
const RESTART_PAUSE_MS = 500;

export interface Supervised {
  readonly name: string;
  /** Whether its process runs at the moment. */
  readonly up: boolean;
  /** Whether it has printed that it is ready. */
  readonly ready: boolean;
  /** How often it ended without being told to, after it had begun to work. */
  readonly endedByItself: number;
  /** Kills it with SIGKILL; it stays down until {@link start}. Resolves when it is gone. */
  kill(): Promise<void>;
  /** Starts it, if it doesn't run. */
  start(): void;
  /** Asks it to end (SIGTERM), waits, and kills it after `timeoutMs` (milliseconds). Returns whether it ended by itself. */
  stop(timeoutMs: number): Promise<boolean>;
}

export interface SupervisedOptions {
  readonly name: string;
  /** Arguments of the `mooring` command; asked for at every start. */
  readonly args: () => string[];
  readonly env: Readonly<Record<string, string>>;
  readonly logFile: string;
  /** Called when a process has begun, before it has done anything. */
  readonly onStart?: () => void;
  /** Called right before a kill, with no time between the two. */
  readonly onKill?: () => void;
  /** Called when a process has ended, however it did. */
  readonly onEnd?: () => void;
}

/** Runs `mooring` with arguments, and again whenever it ends. */
export function supervise(options: SupervisedOptions): Supervised {
  let child: ChildProcess | null = null;
  let wanted = false;
  let ready = false;
  let endedByItself = 0;
  let callOffGuard = () => {};

  function start(): void {
    wanted = true;
    if (child !== null) return;
    const log = openSync(options.logFile, 'a');
    const begun = spawn(process.execPath, [LAUNCHER, ...options.args()], {
      stdio: ['ignore', 'pipe', log],
      env: { ...process.env, ...options.env },
    });
    closeSync(log);
    child = begun;
    ready = false;
    begun.stdout?.on('data', (chunk: Buffer) => {
      // The first thing it says is that it is ready.
      ready = true;
      appendFileSync(options.logFile, chunk);
    });
    callOffGuard = begun.pid === undefined ? () => {} : guardChild(begun.pid, 'KILL');
    options.onStart?.();
    begun.once('exit', () => {
      callOffGuard();
      child = null;
      const hadBegun = ready;
      ready = false;
      options.onEnd?.();
      if (!wanted) return;
      // One that finds PostgreSQL or Temporal away says so and ends: its supervisor tries again.
      if (hadBegun) endedByItself += 1;
      setTimeout(() => wanted && start(), RESTART_PAUSE_MS).unref();
    });
  }

  async function end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    wanted = false;
    const ending = child;
    if (ending === null) return;
    const gone = new Promise<void>((resolve) => ending.once('exit', () => resolve()));
    if (signal === 'SIGKILL') options.onKill?.();
    ending.kill(signal);
    await gone;
  }

  return {
    name: options.name,
    get up() {
      return child !== null;
    },
    get ready() {
      return ready;
    },
    get endedByItself() {
      return endedByItself;
    },
    kill: () => end('SIGKILL'),
    start,
    async stop(timeoutMs) {
      let inTime = true;
      const hard = setTimeout(() => {
        inTime = false;
        child?.kill('SIGKILL');
      }, timeoutMs);
      await end('SIGTERM');
      clearTimeout(hard);
      return inTime;
    },
  };
}

/** Waits until something answers HTTP at `url`. Throws when nothing did within `timeoutMs` (milliseconds). */
export async function untilItAnswers(url: string, timeoutMs: number): Promise<void> {
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
