/** A process that lives long: started again by its supervisor when it ends, and signalled or killed by a test. */
import type { ChildProcess } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { guardChild, waitUntil } from '../../platform/host/child-process.ts';

/** "Stuck", not "slow", in milliseconds. */
const END_TIMEOUT_MS = 60_000;

export interface SupervisorOptions {
  readonly name: string;
  /** Spawns it; called at every start. */
  readonly spawn: () => ChildProcess;
  /** Gets what it prints to its standard output; nothing does when absent. */
  readonly logFile?: string;
  /** A process that ends by itself is started again after so many milliseconds; `null`: never. */
  readonly restartAfterMs: number | null;
  /** Called when a process has begun, before it has done anything. */
  readonly onStart?: () => void;
  /** Called right before a kill, with no time between the two. */
  readonly onKill?: () => void;
  /** Called when a process has ended, however it did. */
  readonly onEnd?: () => void;
}

export class Supervisor {
  readonly name: string;
  readonly #options: SupervisorOptions;
  #child: ChildProcess | null = null;
  #restarts = false;
  #ready = false;
  #endedByItself = 0;

  constructor(options: SupervisorOptions) {
    this.name = options.name;
    this.#options = options;
  }

  /** Whether its process runs at the moment. */
  get runs(): boolean {
    return this.#child !== null;
  }
  /** Whether it has printed something since it was started: its first line is that it is ready. */
  get ready(): boolean {
    return this.#ready;
  }
  /** How often it ended although nobody ended it, after it was ready. */
  get endedByItself(): number {
    return this.#endedByItself;
  }
  /** Throws where it doesn't run. */
  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined) throw new Error(`${this.name} does not run`);
    return pid;
  }

  /** Starts it, if it doesn't run. */
  start(): void {
    const { spawn, logFile, restartAfterMs } = this.#options;
    this.#restarts = restartAfterMs !== null;
    if (this.#child !== null) return;
    const child = spawn();
    this.#child = child;
    this.#ready = false;
    child.stdout?.on('data', (chunk: Buffer) => {
      this.#ready = true;
      if (logFile !== undefined) appendFileSync(logFile, chunk);
    });
    const callOffGuard = child.pid === undefined ? () => {} : guardChild(child.pid, 'KILL');
    this.#options.onStart?.();
    child.once('exit', () => {
      callOffGuard();
      this.#child = null;
      const wasReady = this.#ready;
      this.#ready = false;
      this.#options.onEnd?.();
      if (!this.#restarts) return;
      // One that finds PostgreSQL or Temporal away prints so and ends: it is started again until it doesn't.
      if (wasReady) this.#endedByItself += 1;
      setTimeout(() => this.#restarts && this.start(), restartAfterMs ?? 0).unref();
    });
  }

  /** Sends it a signal, if it runs. One that this ends is started again. */
  signal(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  /** It stays down from the next time it ends, until {@link start}. */
  leaveDown(): void {
    this.#restarts = false;
  }

  /** Waits until it doesn't run. Throws when that takes longer than a minute. */
  async ended(): Promise<void> {
    await waitUntil(() => this.#child === null, `${this.name} did not end`, END_TIMEOUT_MS, 10);
  }

  /** Kills it with SIGKILL; it stays down until {@link start}. Resolves when it is gone. */
  kill(): Promise<void> {
    return this.#end('SIGKILL');
  }

  /** Sends SIGTERM, and SIGKILL after `timeoutMs` (milliseconds). Returns, when it is gone, whether it ended by itself. */
  async stop(timeoutMs: number): Promise<boolean> {
    let inTime = true;
    const hard = setTimeout(() => {
      inTime = false;
      this.signal('SIGKILL');
    }, timeoutMs);
    await this.#end('SIGTERM');
    clearTimeout(hard);
    return inTime;
  }

  async #end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    this.#restarts = false;
    const child = this.#child;
    if (child === null) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    if (signal === 'SIGKILL') this.#options.onKill?.();
    child.kill(signal);
    await gone;
  }
}
