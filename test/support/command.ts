/** The `mooring` command as a process of its own, as an operator or a script runs it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { guardChild, waitUntil } from '../../platform/host/child-process.ts';
import { ownModule } from '../../platform/host/own-module.ts';

/**
 * What Node is called with to run `mooring`: the program that was built for this run of all tests (run.ts), else the TypeScript as
 * it is.
 */
export const MOORING: readonly string[] = process.env.MOORING_TEST_PROGRAM
  ? [join(process.env.MOORING_TEST_PROGRAM, 'cli/mooring.js')]
  : ownModule(import.meta.url, '../../cli/mooring');

export interface CommandRun {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CommandOptions {
  /** Laid over this process's environment. */
  readonly env?: NodeJS.ProcessEnv;
  /** What is piped to it; `null` leaves its standard input open, to be written to later. Nothing when absent. */
  readonly input?: string | null;
}

/** A command that runs, or has ended. It is killed when this process is gone. */
export class RunningCommand {
  readonly child: ChildProcess;
  /** Resolves when it has ended and its output is complete. */
  readonly done: Promise<CommandRun>;
  stdout = '';
  stderr = '';

  constructor(program: string, args: readonly string[], { env = {}, input = '' }: CommandOptions) {
    this.child = spawn(program, args, {
      env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: undefined, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const callOffGuard = this.child.pid === undefined ? () => {} : guardChild(this.child.pid, 'TERM');
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
    });
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
    this.child.stdin?.on('error', () => {});
    if (input !== null) this.child.stdin?.end(input);
    this.done = new Promise((resolve) =>
      this.child.once('close', (code) => {
        callOffGuard();
        resolve({ code, stdout: this.stdout, stderr: this.stderr });
      }),
    );
  }

  /** Both outputs so far, the standard one first. */
  get output(): string {
    return this.stdout + this.stderr;
  }

  /** Waits until its output matches; throws with that output when the command ends first or `timeoutMs` have passed. */
  async untilPrinted(pattern: RegExp, timeoutMs = 120_000): Promise<RegExpExecArray> {
    const find = () => pattern.exec(this.output);
    const ended = () => this.child.exitCode !== null || this.child.signalCode !== null;
    await waitUntil(() => find() !== null || ended(), `${pattern} was never printed`, timeoutMs).catch(
      (error: Error) => {
        throw new Error(`${error.message}: ${this.output}`);
      },
    );
    if (find() === null) await this.done;
    const found = find();
    if (found === null) throw new Error(`the command ended before it printed ${pattern}: ${this.output}`);
    return found;
  }

  /** Sends it a signal, unless it has ended, and waits until it is gone. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<CommandRun> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill(signal);
    return this.done;
  }
}

/** Starts `mooring`, without colour, and returns at once. */
export function startCommand(args: readonly string[], options: CommandOptions = {}): RunningCommand {
  return startProgram(process.execPath, [...MOORING, ...args], options);
}

/** Starts a program, without colour, and returns at once. */
export function startProgram(program: string, args: readonly string[], options: CommandOptions = {}): RunningCommand {
  return new RunningCommand(program, args, options);
}

/** Runs `mooring` to its end, without colour. */
export function runCommand(args: readonly string[], options: CommandOptions = {}): Promise<CommandRun> {
  return startCommand(args, options).done;
}

/** Spawns `mooring` for a {@link Supervisor}: its standard error goes to `logFile`, or to this process's where there is none. */
export function spawnMooring(
  args: readonly string[],
  { env = {}, logFile = null }: { env?: Readonly<Record<string, string>>; logFile?: string | null } = {},
): ChildProcess {
  const log = logFile === null ? null : openSync(logFile, 'a');
  const child = spawn(process.execPath, [...MOORING, ...args], {
    stdio: ['ignore', 'pipe', log ?? 'inherit'],
    env: { ...process.env, ...env },
  });
  if (log !== null) closeSync(log);
  return child;
}
