/**
 * The QEMU process of a VM: starts it or takes it up from an earlier agent, sends it commands over QMP, connects again when
 * the connection breaks, and keeps the files of its serial console. What its events mean is its owner's to decide.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { guardChild } from '../../platform/host/child-process.ts';
import { guarded } from '../guarded.ts';
import { ConsoleLog, type ConsoleTail } from './console-log.ts';
import { COUNT_LINE } from './guest-image.ts';
import { endProcess, QEMU_LOG, QMP_SOCKET, spawnQemu, worksIn } from './qemu-program.ts';
import { QmpClient, QmpDisconnected, QmpError, type QmpEvent } from './qmp-client.ts';
import type { QemuVmContext } from './vm-context.ts';

/** What a process asks of its VM, and reports to it. */
export interface QemuProcessOwner {
  /** The process has ended, or the agent has let go of the VM. */
  isOver(): boolean;
  /** QEMU's events, in the order in which they come. */
  onEvent(event: QmpEvent): void;
  /** The connection was lost and made again: events may be missing. */
  onReconnect(): void;
  /** The process is gone. May be called more than once. */
  onEnd(reason: string): void;
}

/** What QEMU answers about a process that an earlier agent started. */
export interface TakenUp {
  readonly runState: string;
  readonly migrationStatus: string;
}

const statusAnswer = z.object({ status: z.string() });
const migrateAnswer = z.object({
  status: z.string().default('none'),
  'total-time': z.number().default(0),
  'expected-downtime': z.number().optional(),
  ram: z
    .object({ transferred: z.number(), remaining: z.number(), total: z.number() })
    .default({ transferred: 0, remaining: 0, total: 0 }),
  'socket-address': z.array(z.object({ type: z.string(), port: z.string().optional() })).optional(),
  'error-desc': z.string().optional(),
});
/** QEMU's answer to `query-migrate`. */
export type MigrationInfo = z.infer<typeof migrateAnswer>;

const START_MS = 20_000;
/** How long a query may take, in milliseconds. */
export const QUICK_MS = 2_000;
/** How often QEMU is asked for what it sends no event about, in milliseconds. */
export const LOOK_EVERY_MS = 50;
/** How often a process or an agent that does not answer is asked again, in milliseconds. */
export const ASK_EVERY_MS = 200;
const ROTATE_EVERY_MS = 5_000;
/** How long QEMU may take over an orderly end, in milliseconds. */
const QUIT_MS = 5_000;

export class QemuProcess {
  /** The VM's folder: the process's working directory. */
  readonly folder: string;
  readonly #context: Pick<QemuVmContext, 'program' | 'endWithAgent' | 'disk' | 'onTrouble'>;
  readonly #owner: QemuProcessOwner;
  readonly #console: ConsoleLog;
  #pid = 0;
  #qmp: QmpClient | null = null;
  #callOffGuard: () => void = () => {};
  #rotation: NodeJS.Timeout | undefined;
  /** While a process is taken up, that alone connects to it. */
  #takingUp = false;
  readonly #wakers = new Set<() => void>();

  /** `folder` must be a real path, the VM's own. */
  constructor(
    folder: string,
    context: Pick<QemuVmContext, 'program' | 'endWithAgent' | 'disk' | 'onTrouble'>,
    owner: QemuProcessOwner,
  ) {
    this.folder = folder;
    this.#context = context;
    this.#owner = owner;
    this.#console = new ConsoleLog(context.disk, folder);
  }

  /** Starts QEMU with these arguments and connects to it. Throws with what QEMU printed when it doesn't come up. */
  async start(args: readonly string[]): Promise<void> {
    const child = spawnQemu(this.#context.program, this.folder, args, this.#context.disk);
    let early: string | null = null;
    child.once('error', (error) => {
      early ??= error.message;
    });
    child.once('exit', (code, signal) => {
      early ??= signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`;
      const reason = early;
      guarded(this.#context.onTrouble, () => this.#owner.onEnd(reason));
    });
    this.#pid = child.pid ?? 0;
    if (this.#context.endWithAgent && this.#pid !== 0) this.#callOffGuard = guardChild(this.#pid, 'KILL');
    const deadline = performance.now() + START_MS;
    while (this.#qmp === null) {
      if (early !== null || this.#owner.isOver() || performance.now() > deadline) {
        const printed = (await readFile(join(this.folder, QEMU_LOG), 'utf8').catch(() => '')).trim().slice(-500);
        const reason = early ?? 'it did not answer in time';
        throw new Error(`QEMU did not start: ${reason}${printed === '' ? '' : `: ${printed}`}`);
      }
      if (!(await this.#connect())) await pause(20);
    }
    this.#keepConsoleSmall();
  }

  /** Takes the process `pid`, which an earlier agent started, for this VM's. {@link takeUp} connects to it. */
  adopt(pid: number): void {
    this.#pid = pid;
    if (this.#context.endWithAgent)
      guarded(this.#context.onTrouble, () => {
        this.#callOffGuard = guardChild(pid, 'KILL');
      });
  }

  /**
   * Connects to an adopted process and asks it for its state. Resolves when `onKnown` was called, or QEMU doesn't answer for
   * now: it is asked again until it answers, or the process ends.
   */
  async takeUp(onKnown: (found: TakenUp) => void): Promise<void> {
    this.#keepConsoleSmall();
    // A console that can't be put in order is no reason to let go of its guest.
    await this.#console
      .mend()
      .catch((error: Error) =>
        this.#context.onTrouble(`${this.folder}: its console is not in order: ${error.message}`),
      );
    this.#takingUp = true;
    if (await this.#tryTakeUp(onKnown)) return;
    void this.#keepTakingUp(onKnown);
  }

  /** Runs a command. Throws {@link QmpError}, {@link QmpDisconnected} or `QmpTimeout`. */
  execute(command: string, args: Record<string, unknown> = {}, timeoutMs?: number): Promise<unknown> {
    if (this.#qmp === null) return Promise.reject(new QmpDisconnected(`QMP ${command}: QEMU is not connected`));
    return this.#qmp.execute(command, args, timeoutMs);
  }

  /** Runs a command that may come twice, until QEMU has taken or refused it. Throws {@link QmpError} when it refuses. */
  async executeUntilAnswered(command: string): Promise<void> {
    while (!this.#owner.isOver()) {
      try {
        await this.execute(command);
        return;
      } catch (error) {
        if (error instanceof QmpError) throw error;
        await this.sleep(LOOK_EVERY_MS);
      }
    }
  }

  /** Cuts the connection of a migration, past any command that hangs. Never throws: the caller tries again until it is over. */
  async cutMigration(): Promise<void> {
    await this.#qmp?.executeOutOfBand('yank', { instances: [{ type: 'migration' }] }, QUICK_MS).catch(() => {});
  }

  /** QEMU's run state. Throws as {@link execute}. */
  async runState(): Promise<string> {
    return statusAnswer.parse(await this.execute('query-status', {}, QUICK_MS)).status;
  }

  /** How the last migration is. Throws as {@link execute}. */
  async migration(): Promise<MigrationInfo> {
    return migrateAnswer.parse(await this.execute('query-migrate', {}, QUICK_MS));
  }

  /** A piece of the console; offsets as in {@link ConsoleLog.read}. */
  readConsole(fromOffset: number, maxBytes: number): Promise<{ data: Buffer; endOffset: number }> {
    return this.#console.read(fromOffset, maxBytes);
  }

  /** The end of the console, to be handed over. The guest must stand still. */
  consoleTail(): Promise<ConsoleTail> {
    return this.#console.tail();
  }

  /** Has the console go on where it was at the guest's source. */
  async continueConsole(tail: ConsoleTail): Promise<void> {
    if (this.#qmp !== null) await this.#console.continueFrom(tail, this.#qmp);
  }

  /** What the guest counted to last; `null` before it has counted. */
  lastCount(): number | null {
    const last = [...this.#console.readEndSync(4096).toString('latin1').matchAll(COUNT_LINE)].at(-1)?.[1];
    return last === undefined ? null : Number(last);
  }

  /** Sleeps until QEMU sends an event or {@link wake} is called, at most `ms`. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#wakers.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#wakers.add(wake);
    });
  }

  /** Ends every {@link sleep}. */
  wake(): void {
    for (const wake of [...this.#wakers]) wake();
  }

  /** Ends the process in order, or for good where that takes too long. Resolves when it is gone. */
  async quit(): Promise<void> {
    await this.execute('quit').catch(() => {});
    const deadline = performance.now() + QUIT_MS;
    while (worksIn(this.#pid, this.folder) && performance.now() < deadline) await pause(10);
    await this.end();
  }

  /** Ends the process at once. Resolves when it is gone. */
  async end(): Promise<void> {
    if (this.#pid !== 0) await endProcess(this.#pid, this.folder);
  }

  /** Has the process die, as it would by itself: its owner is not to expect it. */
  crash(): void {
    if (this.#pid !== 0 && worksIn(this.#pid, this.folder)) process.kill(this.#pid, 'SIGKILL');
  }

  /** Nothing moves the console on to new files any more. */
  stopConsoleRotation(): void {
    clearInterval(this.#rotation);
  }

  /** To be called when the process is gone: nothing watches over it any more. */
  dismiss(): void {
    this.#callOffGuard();
    this.stopConsoleRotation();
  }

  /** Closes the connection; the process lives on. */
  disconnect(): void {
    this.#qmp?.close();
  }

  async #connect(): Promise<boolean> {
    try {
      this.#qmp = await QmpClient.connect({
        // Through the process's own working directory: short enough for a socket's path, and never another's socket.
        path: `/proc/${this.#pid}/cwd/${QMP_SOCKET}`,
        onEvent: (event) => {
          guarded(this.#context.onTrouble, () => this.#owner.onEvent(event));
          this.wake();
        },
        onClose: () => {
          this.#qmp = null;
          if (!this.#owner.isOver() && !this.#takingUp) void this.#reconnect();
        },
      });
      return true;
    } catch {
      return false;
    }
  }

  /** The process has gone, or only the connection to it. */
  async #reconnect(): Promise<void> {
    while (!this.#owner.isOver() && this.#qmp === null) {
      if (!worksIn(this.#pid, this.folder)) {
        this.#owner.onEnd('its process has gone');
        return;
      }
      if (await this.#connect()) this.#owner.onReconnect();
      else await pause(LOOK_EVERY_MS);
    }
  }

  async #tryTakeUp(onKnown: (found: TakenUp) => void): Promise<boolean> {
    try {
      if (this.#qmp === null && !(await this.#connect())) return false;
      const runState = await this.runState();
      const { status: migrationStatus } = await this.migration();
      this.#takingUp = false;
      onKnown({ runState, migrationStatus });
      return true;
    } catch {
      return false;
    }
  }

  async #keepTakingUp(onKnown: (found: TakenUp) => void): Promise<void> {
    while (!this.#owner.isOver()) {
      if (!worksIn(this.#pid, this.folder)) {
        this.#takingUp = false;
        this.#owner.onEnd('its process has gone');
        return;
      }
      // A destination that is frozen makes its source hang: without its connection, the source fails and answers.
      await this.cutMigration();
      if (await this.#tryTakeUp(onKnown)) return;
      await this.sleep(ASK_EVERY_MS);
    }
  }

  #keepConsoleSmall(): void {
    this.#rotation = setInterval(() => {
      if (this.#qmp !== null) void this.#console.rotate(this.#qmp).catch(() => {});
    }, ROTATE_EVERY_MS);
    this.#rotation.unref();
  }
}
