/**
 * One VM: one QEMU process, what it was told, and what became of it. States come from QEMU's own events and statuses.
 *
 * Who runs the guest: QEMU always starts with -S, so that only this agent's `cont` lets a guest run. A destination gives it
 * when QEMU has everything and the source has said that it let go, or is dead (`settleArrival`). A source gives it after a
 * migration only on QEMU's word that the migration is over and did not complete (`readSourceVerdict`). What was decided is
 * on disk before it is said. So at no point, whoever dies, two processes run one guest, and it is lost only when every
 * process that had all of it is dead.
 *
 * Under TCG the guest stands still while its memory is copied: QEMU 7.2 loses track of the pages that a running guest
 * writes then, and corrupts it. Under KVM it runs on, and stands still for the rest only.
 */

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import type { Server, Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { type SourceStatus, settleArrival } from '../../model/hand-over.ts';
import { guardChild } from '../../platform/host/child-process.ts';
import type { MigrationProgress } from '../../wire/sled-protocol.ts';
import { splitAddress } from '../../wire/sled-protocol.ts';
import type { FaultBook } from '../faults.ts';
import type { BookedVm, GuestLogEntry, StopAnswer, VmListener, VmSpec } from '../hypervisor.ts';
import type { PeerTransport } from '../peer-transport.ts';
import { ConsoleLog } from './console-log.ts';
import { COUNT_LINE, type GuestImage } from './guest-image.ts';
import { askSource, type HandOverMessage, HandOverPeer } from './hand-over.ts';
import { admitSource, secureMigration } from './migration-tls.ts';
import {
  ACCELERATORS,
  endProcess,
  type MachineShape,
  QEMU_LOG,
  type QemuProgram,
  QMP_SOCKET,
  qemuArguments,
  spawnQemu,
  worksIn,
} from './qemu-program.ts';
import { QmpClient, QmpDisconnected, QmpError, type QmpEvent } from './qmp-client.ts';
import { readSourceVerdict } from './source-verdict.ts';
import { recoverVm } from './vm-recovery.ts';

/** What all VMs of a hypervisor share. */
export interface QemuVmContext {
  readonly program: QemuProgram;
  readonly image: GuestImage;
  readonly faults: FaultBook;
  /** `stop_and_copy`: the guest stands still while its memory is copied. `pre_copy`: only for the rest. */
  readonly migrationMode: 'stop_and_copy' | 'pre_copy';
  /** The agent's own `ip:port`. */
  readonly agentAddress: () => string;
  /** How guests are handed over to other sleds. */
  readonly transport: PeerTransport;
  /** How long a guest may take to power off before it is done for it, in milliseconds. */
  readonly stopTimeoutMs: number;
  /** How long a silent connection between two agents counts as alive, in milliseconds. */
  readonly silenceMs: number;
  /** How fast a migration out may be, in bytes per second; 0 is without limit. */
  readonly migrationBandwidth: number;
  /** How long a migration may make no progress before its source cancels it, in milliseconds. */
  readonly stallMs: number;
  /** The processes end when this one does, however it ends. */
  readonly endWithAgent: boolean;
  /** Hears of what went wrong, in words for people. */
  readonly onTrouble: (message: string) => void;
  readonly log: (entry: GuestLogEntry) => void;
}

/** What the hypervisor must know of a VM beside the agent's book, after a restart. */
const journal = z.object({
  shape: z.object({
    machine: z.string(),
    accelerator: z.enum(ACCELERATORS),
    memoryMib: z.number(),
    ncpus: z.number(),
  }),
  /** Whom to ask about the guest that is arriving. */
  source: z.object({ vmmId: z.string(), agent: z.string() }).nullable(),
  stopOnArrival: z.boolean(),
  /** When the guest was asked to power off, in milliseconds since the epoch. */
  stopAskedAt: z.number().nullable(),
});
type Journal = z.infer<typeof journal>;
const JOURNAL = 'vm.json';

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

const START_MS = 20_000;
const QUICK_MS = 2_000;
const LOOK_EVERY_MS = 50;
const ASK_EVERY_MS = 200;
const POWER_BUTTON_EVERY_MS = 1_000;
const ROTATE_EVERY_MS = 5_000;
/** How long after its last reset a guest counts as running again, and how long after its first moment it can be reset, in milliseconds. */
const CALM_MS = 1_000;
const FIRST_MOMENTS_MS = 500;
/** How long QEMU may take over an orderly end, in milliseconds. */
const QUIT_MS = 5_000;
/** How long after the source's death what it had sent may still be on its way, in milliseconds. */
const PATIENCE_MS = 5_000;
/** How long a cancelled migration may go on before its connection is cut out of band, in milliseconds. */
const YANK_AFTER_MS = 1_000;

/** What a destination asks of a source. */
interface Asked {
  readonly migration_id: string;
  readonly instance_id: string;
  readonly uri: string;
  readonly shape: MachineShape;
}

interface Outgoing {
  readonly migrationId: string;
  readonly peer: HandOverPeer | null;
  cancelled: boolean;
  /** Since when the guest stands still, by `performance.now()`; `null` while it runs. */
  pausedAt: number | null;
  readonly done: Promise<'given' | 'kept' | 'died'>;
}

interface Incoming {
  readonly migrationId: string;
  peer: HandOverPeer | null;
  connected: boolean;
  given: boolean;
  /** When the source said that the guest stands still, by `performance.now()`. */
  pausedAt: number | null;
  /** The source's last word on the guest's way. */
  progress: MigrationProgress | null;
  console: Promise<void>;
}

type Phase = 'made' | 'running' | 'rebooting' | 'migrating_out' | 'migrating_in' | 'stopping' | 'ending' | 'ended';

export class QemuVm {
  readonly spec: VmSpec;
  readonly #folder: string;
  readonly #context: QemuVmContext;
  readonly #tell: VmListener;
  readonly #console: ConsoleLog;
  #journal: Journal;
  #phase: Phase = 'made';
  #pid = 0;
  #qmp: QmpClient | null = null;
  #server: Server | null = null;
  readonly #sockets = new Set<Socket>();
  #outgoing: Outgoing | null = null;
  #incoming: Incoming | null = null;
  #progress: MigrationProgress | null = null;
  #executing = false;
  /** When the guest was let run here, and when its reboot is over if nothing resets it before; by `performance.now()`. */
  #ranAt = Number.NEGATIVE_INFINITY;
  #calmAt = 0;
  #poweringOff = false;
  /** The guest has gone to the destination of its migration. */
  #left = false;
  /** Set when the agent has let go of the VM, or is ending it: nothing more is said or done. */
  #released = false;
  #callOffGuard: () => void = () => {};
  #rotation: NodeJS.Timeout | undefined;
  #takingUp = false;
  readonly #wakers = new Set<() => void>();

  /** `folder` must be a real path, the VM's own. `shape` is what it is made with; `null` reads it from the folder. */
  constructor(spec: VmSpec, folder: string, shape: MachineShape | null, context: QemuVmContext, tell: VmListener) {
    this.spec = spec;
    this.#folder = folder;
    this.#context = context;
    this.#tell = (event) => {
      if (!this.#released) tell(event);
    };
    this.#console = new ConsoleLog(folder);
    this.#journal =
      shape === null
        ? journal.parse(JSON.parse(readFileSync(join(folder, JOURNAL), 'utf8')))
        : { shape, source: null, stopOnArrival: false, stopAskedAt: null };
  }

  /** Makes the VM's process, its guest not running. Throws with what QEMU said when it doesn't come up. */
  async start(): Promise<void> {
    const { program, image, endWithAgent } = this.#context;
    await this.#listen();
    const args = qemuArguments(this.spec.vmmId, this.#journal.shape, image, {
      paused: true,
      incoming: this.spec.incoming,
    });
    // Before the process is there, so that it is never found without it.
    this.#note({});
    const child = spawnQemu(program, this.#folder, args);
    let early: string | null = null;
    child.once('error', (error) => {
      early ??= error.message;
    });
    child.once('exit', (code, signal) => {
      early ??= signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`;
      this.#ended(early);
    });
    this.#pid = child.pid ?? 0;
    if (endWithAgent && this.#pid !== 0) this.#callOffGuard = guardChild(this.#pid, 'KILL');
    const deadline = performance.now() + START_MS;
    while (this.#qmp === null) {
      if (early !== null || this.#released || performance.now() > deadline) {
        const said = (await readFile(join(this.#folder, QEMU_LOG), 'utf8').catch(() => '')).trim().slice(-500);
        throw new Error(`QEMU did not start: ${early ?? 'it did not answer in time'}${said === '' ? '' : `: ${said}`}`);
      }
      if (!(await this.#connect())) await pause(20);
    }
    this.#keepConsoleSmall();
  }

  /**
   * Takes up a process that an earlier agent started. Resolves when its state is known, or QEMU doesn't tell for now: the
   * process is there, which is what must be known, and it is asked again until it tells or ends.
   */
  async adopt(pid: number, booked: BookedVm): Promise<void> {
    this.#pid = pid;
    if (this.#context.endWithAgent) this.#callOffGuard = guardChild(pid, 'KILL');
    await this.#listen().catch((error) => {
      this.#trouble(`can't listen at ${this.spec.address} (${error.message}): no migration out of it is possible`);
    });
    this.#keepConsoleSmall();
    await this.#console.mend();
    this.#takingUp = true;
    if (await this.#tryTakeUp(booked)) return;
    void this.#keepTakingUp(booked);
  }

  /** Runs the guest. */
  run(): void {
    if (this.#phase === 'made') this.#background(() => this.#letRun());
  }

  async stop(): Promise<StopAnswer> {
    switch (this.#phase) {
      case 'migrating_out':
        if (this.#outgoing !== null) {
          this.#cancel(this.#outgoing);
          if ((await this.#outgoing.done) === 'given') return 'left';
        }
        if (!this.#over()) this.#shutDown();
        return 'taken';
      case 'migrating_in':
        this.#note({ stopOnArrival: true });
        return 'taken';
      case 'made':
      case 'running':
      case 'rebooting':
        this.#shutDown();
        return 'taken';
      case 'stopping':
      case 'ending':
      case 'ended':
        return this.#left ? 'left' : 'taken';
    }
  }

  reboot(): void {
    if (this.#phase !== 'running') return;
    this.#rebootUntilCalm();
    // Not before QEMU has taken the reset, however long that takes.
    this.#calmAt = Number.POSITIVE_INFINITY;
    this.#background(async () => {
      // A reset that meets the firmware's first moments hangs the guest: seen with QEMU 7.2 and SeaBIOS 1.16.
      while (this.#phase === 'rebooting' && performance.now() < this.#ranAt + FIRST_MOMENTS_MS)
        await this.#sleep(this.#ranAt + FIRST_MOMENTS_MS - performance.now());
      if (this.#phase === 'rebooting') await this.#insist('system_reset');
      this.#calmAt = performance.now() + CALM_MS;
    });
  }

  /** Fetches the guest from the VM at `sourceAddress`. */
  migrateIn(migrationId: string, sourceAddress: string): void {
    if (this.#phase !== 'made') return;
    this.#phase = 'migrating_in';
    const failure = this.#context.faults.takeMigrationFailure('target');
    if (failure === 'before') {
      this.#fail('a fault was planted on this side of the migration');
      return;
    }
    this.#background(async () => {
      const incoming: Incoming = {
        migrationId,
        peer: null,
        connected: true,
        given: false,
        pausedAt: null,
        progress: null,
        console: Promise.resolve(),
      };
      this.#incoming = incoming;
      const host = this.spec.address.slice(0, this.spec.address.lastIndexOf(':'));
      await this.#execute('migrate-set-capabilities', { capabilities: MIGRATION_CAPABILITIES });
      await this.#secure({ endpoint: 'server' });
      await this.#execute('migrate-incoming', { uri: `tcp:${host}:0` });
      const port = (await this.#migration())['socket-address']?.[0]?.port;
      if (port === undefined) throw new Error('QEMU does not say where it takes a guest in');
      const uri = `tcp:${host}:${port}`;
      const hear = (said: HandOverMessage, peer: HandOverPeer) => {
        if ('hello' in said) {
          this.#note({ source: { vmmId: said.hello.vmm_id, agent: said.hello.agent } });
          const { instanceId } = this.spec;
          const { shape } = this.#journal;
          this.#background(async () => {
            await this.#admit(this.#context.transport.sledAt(peer.socket));
            peer.say({ fetch: { migration_id: migrationId, instance_id: instanceId, uri, shape } });
          });
        } else if ('begin' in said) {
          this.#tell({ kind: 'migration-in', migrationId, state: 'in_progress' });
          if (failure === 'middle') this.crash();
        } else if ('refused' in said) this.#fail(`the source refuses: ${said.refused}`);
        else if ('paused' in said) {
          const tail = said.paused;
          incoming.pausedAt = performance.now();
          incoming.console = incoming.console
            .then(() => (this.#qmp === null ? undefined : this.#console.continueFrom(tail, this.#qmp)))
            .catch((error) => this.#trouble(`its console does not go on where it was: ${error.message}`));
        } else if ('yours' in said) {
          incoming.given = true;
          incoming.progress = said.progress ?? null;
          this.#wake();
        }
      };
      incoming.peer = HandOverPeer.dial(this.#context.transport, sourceAddress, this.#context.silenceMs, hear, () => {
        incoming.connected = false;
        this.#wake();
      });
      await this.#settle(incoming);
    });
  }

  progress(): MigrationProgress | null {
    return this.#progress;
  }

  /** A piece of the console; `null` once the VM has been ended: while its files go away, what is left would look like a fresh start. */
  async readConsole(fromOffset: number, maxBytes: number): Promise<{ data: Buffer; endOffset: number } | null> {
    const piece = await this.#console.read(fromOffset, maxBytes);
    return this.#released ? null : piece;
  }

  /** Ends the process at once, without a word, and leaves nothing of it. */
  async kill(): Promise<void> {
    this.#release();
    if (this.#pid !== 0) await endProcess(this.#pid, this.#folder);
    this.#callOffGuard();
    this.#cease('killed');
    this.#phase = 'ended';
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** Lets go of the process, which lives on. */
  detach(): void {
    this.#release();
    this.#qmp?.close();
  }

  /** Test only: the guest's power button is pressed until it powers itself off. */
  halt(): void {
    this.#background(async () => {
      while (this.#phase === 'running' && !this.#released) {
        await this.#execute('system_powerdown').catch(() => {});
        await this.#sleep(POWER_BUTTON_EVERY_MS);
      }
    });
  }

  /** Test only: the process dies. */
  crash(): void {
    if (this.#pid !== 0 && worksIn(this.#pid, this.#folder)) process.kill(this.#pid, 'SIGKILL');
  }

  /** What the guest counted to last; `null` before it has counted. */
  count(): number | null {
    const last = [...this.#console.readEndSync(4096).toString('latin1').matchAll(COUNT_LINE)].at(-1)?.[1];
    return last === undefined ? null : Number(last);
  }

  // ---- the connection to QEMU ------------------------------------------------------------------------------------------

  async #connect(): Promise<boolean> {
    try {
      this.#qmp = await QmpClient.connect({
        // Through the process's own working directory: short enough for a socket's path, and never another's socket.
        path: `/proc/${this.#pid}/cwd/${QMP_SOCKET}`,
        onEvent: (event) => this.#hear(event),
        onClose: () => {
          this.#qmp = null;
          if (!this.#over() && !this.#takingUp) void this.#reconnect(() => this.#lookAgain());
        },
      });
      return true;
    } catch {
      return false;
    }
  }

  /** The process has gone, or only the connection to it. */
  async #reconnect(then: () => Promise<void>): Promise<void> {
    while (!this.#released && this.#phase !== 'ended' && this.#qmp === null) {
      if (!worksIn(this.#pid, this.#folder)) {
        this.#ended('its process has gone');
        return;
      }
      if (await this.#connect()) this.#background(then);
      else await pause(LOOK_EVERY_MS);
    }
  }

  /** Events were lost with a connection. */
  async #lookAgain(): Promise<void> {
    const runState = await this.#runState();
    if (runState === 'shutdown') this.#poweredOff('it was found powered off');
    if (runState === 'guest-panicked') this.#fail('its guest panicked');
    this.#wake();
  }

  #execute(command: string, args: Record<string, unknown> = {}, timeoutMs?: number): Promise<unknown> {
    if (this.#qmp === null) return Promise.reject(new QmpDisconnected(`QMP ${command}: QEMU is not connected`));
    return this.#qmp.execute(command, args, timeoutMs);
  }

  /** Runs a command that may come twice, until QEMU has taken or refused it. Throws {@link QmpError} when it refuses. */
  async #insist(command: string): Promise<void> {
    while (!this.#over()) {
      try {
        await this.#execute(command);
        return;
      } catch (error) {
        if (error instanceof QmpError) throw error;
        await this.#sleep(LOOK_EVERY_MS);
      }
    }
  }

  async #runState(): Promise<string> {
    return statusAnswer.parse(await this.#execute('query-status', {}, QUICK_MS)).status;
  }

  async #migration(): Promise<z.infer<typeof migrateAnswer>> {
    return migrateAnswer.parse(await this.#execute('query-migrate', {}, QUICK_MS));
  }

  #hear({ event, data }: QmpEvent): void {
    switch (event) {
      case 'RESUME':
        this.#begin();
        break;
      case 'STOP':
        this.#cease('stopped');
        break;
      case 'SHUTDOWN':
        // Other reasons are this agent's own `quit`, or a signal; then the process ends.
        if (data.guest === true) this.#poweredOff(String(data.reason));
        break;
      case 'RESET':
        if (this.#phase === 'running' || this.#phase === 'rebooting') this.#rebootUntilCalm();
        break;
      case 'GUEST_PANICKED':
        this.#fail('its guest panicked');
        break;
    }
    this.#wake();
  }

  // ---- the guest's life ------------------------------------------------------------------------------------------------

  async #letRun(): Promise<void> {
    await this.#insist('cont');
    this.#ranAt = performance.now();
    if (this.#phase !== 'made') return;
    this.#phase = 'running';
    this.#tell({ kind: 'state', state: 'running' });
  }

  /**
   * It reboots, until nothing has reset it for a while: one reset is several to QEMU, since the firmware, which finds that it
   * has run before, resets the machine twice more in its first moments (SeaBIOS: `tryReboot`).
   */
  #rebootUntilCalm(): void {
    this.#calmAt = performance.now() + CALM_MS;
    if (this.#phase !== 'running') return;
    this.#phase = 'rebooting';
    this.#tell({ kind: 'state', state: 'rebooting' });
    this.#background(async () => {
      for (;;) {
        const leftMs = this.#calmAt - performance.now();
        if (leftMs > 0) await this.#sleep(Math.min(leftMs, CALM_MS));
        if (this.#over() || this.#phase !== 'rebooting') return;
        if (performance.now() >= this.#calmAt) break;
      }
      this.#phase = 'running';
      this.#tell({ kind: 'state', state: 'running' });
    });
  }

  /** Asks the guest by its power button, again and again since one that boots doesn't hear it, and then does it for it. */
  #shutDown(): void {
    const unborn = this.#phase === 'made';
    this.#phase = 'stopping';
    this.#tell({ kind: 'state', state: 'stopping' });
    if (unborn) {
      this.#poweredOff('it had not run');
      return;
    }
    if (this.#journal.stopAskedAt === null) this.#note({ stopAskedAt: Date.now() });
    this.#background(() => this.#pressPowerButton());
  }

  async #pressPowerButton(): Promise<void> {
    const deadline = (this.#journal.stopAskedAt ?? Date.now()) + this.#context.stopTimeoutMs;
    while (this.#phase === 'stopping' && !this.#released) {
      if (Date.now() > deadline) {
        this.#poweredOff('it did not power off in time');
        return;
      }
      await this.#execute('system_powerdown').catch(() => {});
      await this.#sleep(Math.min(POWER_BUTTON_EVERY_MS, Math.max(1, deadline - Date.now() + 1)));
    }
  }

  /** The guest is off: its process is of no more use. */
  #poweredOff(reason: string): void {
    // In a hand-over, what QEMU says at its end counts: an arriving guest may have powered off before it was sent.
    if (this.#phase === 'migrating_in' || this.#phase === 'migrating_out') return;
    if (this.#poweringOff || this.#phase === 'ended') return;
    this.#poweringOff = true;
    if (this.#phase !== 'stopping') this.#tell({ kind: 'state', state: 'stopping' });
    this.#cease(reason);
    this.#tell({ kind: 'state', state: 'stopped' });
    this.#endProcess();
  }

  /** Ends the process in order; its end is reported as `destroyed`. */
  #endProcess(): void {
    this.#phase = 'ending';
    this.#background(async () => {
      await this.#execute('quit').catch(() => {});
      const deadline = performance.now() + QUIT_MS;
      while (worksIn(this.#pid, this.#folder) && performance.now() < deadline) await pause(10);
      await endProcess(this.#pid, this.#folder);
      this.#ended('it was ended in order');
    });
  }

  /** Nothing can become of the VM: its process is ended, and then it is reported `failed`. */
  #fail(reason: string): void {
    if (this.#over() || this.#phase === 'ending') return;
    this.#trouble(reason);
    this.#background(async () => {
      await endProcess(this.#pid, this.#folder);
      this.#ended(reason);
    });
  }

  /** The process is gone. Who has the guest of a migration under way, a dead source can't say: its destination does. */
  #ended(reason: string): void {
    if (this.#phase === 'ended') return;
    const inOrder = this.#phase === 'ending';
    this.#phase = 'ended';
    this.#callOffGuard();
    clearInterval(this.#rotation);
    this.#cease(reason);
    this.#incoming?.peer?.close();
    if (!inOrder && !this.#released) this.#trouble(reason);
    this.#tell({ kind: 'state', state: inOrder ? 'destroyed' : 'failed' });
    this.#outgoing?.peer?.close();
    this.#wake();
  }

  /** Between sleds that have joined, the guest's memory goes over TLS. */
  async #secure(side: Parameters<typeof secureMigration>[3]): Promise<void> {
    const { holder } = this.#context.transport;
    if (holder === null) return;
    await secureMigration((command, args) => this.#execute(command, args), this.#folder, holder.material, side);
  }

  /** Lets QEMU take the guest from this sled alone; until then it takes it from none. */
  async #admit(sledId: string | null): Promise<void> {
    if (sledId !== null) await admitSource((command, args) => this.#execute(command, args), sledId);
  }

  // ---- the source's side of a migration --------------------------------------------------------------------------------

  async #listen(): Promise<void> {
    const server = this.#context.transport.serve((socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
      const peer = new HandOverPeer(
        socket,
        this.#context.silenceMs,
        (said) => {
          if ('fetch' in said) void this.#giveToDestination(said.fetch, socket, peer);
        },
        () => {
          if (this.#outgoing?.peer === peer) this.#cancel(this.#outgoing);
        },
      );
      peer.say({ hello: { vmm_id: this.spec.vmmId, agent: this.#reachableAgent() } });
    });
    const { host, port } = splitAddress(this.spec.address);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host, resolve);
    });
    server.on('error', () => {});
    this.#server = server;
  }

  /** Where a destination reaches this agent: one that listens everywhere is where its VMMs are. */
  #reachableAgent(): string {
    const agent = this.#context.agentAddress();
    const everywhere = /^(0\.0\.0\.0|\[::\]):(\d+)$/.exec(agent);
    const host = this.spec.address.slice(0, this.spec.address.lastIndexOf(':'));
    return everywhere === null ? agent : `${host}:${everywhere[2]}`;
  }

  async #giveToDestination(asked: Asked, socket: Socket, peer: HandOverPeer): Promise<void> {
    const { isDestination } = this.#context.transport;
    if (isDestination !== null && !(await isDestination(socket, this.spec.vmmId, asked.migration_id))) {
      peer.say({ refused: 'the control plane knows of no such migration to this sled' });
      return;
    }
    if (!socket.destroyed) this.#give(asked, peer);
  }

  #give(asked: Asked, peer: HandOverPeer): void {
    const reason =
      // An address is used again: a late call must not get another instance's guest.
      asked.instance_id !== this.spec.instanceId
        ? 'here is another instance'
        : this.#phase !== 'running'
          ? `the source is ${this.#phase}`
          : describeDifference(this.#journal.shape, asked.shape);
    if (reason !== null) {
      peer.say({ refused: reason });
      return;
    }
    const { migration_id: migrationId, uri } = asked;
    this.#phase = 'migrating_out';
    this.#progress = null;
    this.#tell({ kind: 'state', state: 'migrating' });
    this.#tell({ kind: 'migration-out', migrationId, state: 'in_progress' });
    peer.say({ begin: true });
    const cancelled = this.#context.faults.takeMigrationFailure('source') !== null;
    this.#watchOver(migrationId, peer, cancelled, async (outgoing) => {
      await this.#execute('migrate-set-capabilities', {
        capabilities: [
          ...MIGRATION_CAPABILITIES,
          { capability: 'pause-before-switchover', state: this.#context.migrationMode === 'pre_copy' },
        ],
      });
      await this.#execute('migrate-set-parameters', {
        'max-bandwidth': this.#context.migrationBandwidth,
        // Enough for what is left of a small guest, in milliseconds.
        'downtime-limit': 20,
      });
      await this.#secure({ endpoint: 'client', serverHost: hostOfUri(uri) });
      if (this.#context.migrationMode === 'stop_and_copy') {
        await this.#execute('stop');
        // It may have powered off meanwhile: then there is nothing to migrate.
        if ((await this.#runState()) !== 'paused') return;
        await this.#sayPaused(outgoing);
      }
      if (!outgoing.cancelled) await this.#execute('migrate', { uri });
    });
  }

  /** Sends a guest, watches until it is settled who has it, and acts on it. */
  #watchOver(
    migrationId: string,
    peer: HandOverPeer | null,
    cancelled: boolean,
    send: (outgoing: Outgoing) => Promise<void>,
  ): void {
    let settle: (outcome: 'given' | 'kept' | 'died') => void = () => {};
    const done = new Promise<'given' | 'kept' | 'died'>((resolve) => {
      settle = resolve;
    });
    const outgoing: Outgoing = { migrationId, peer, cancelled, pausedAt: null, done };
    this.#outgoing = outgoing;
    this.#background(async () => {
      const begunAt = performance.now();
      if (!outgoing.cancelled) {
        await send(outgoing).catch((error) => {
          this.#trouble(`its guest can't be sent: ${error.message}`);
          outgoing.cancelled = true;
        });
      }
      const outcome = await this.#verdict(outgoing, begunAt);
      if (outcome === 'given') {
        this.#outgoing = null;
        this.#left = true;
        // On disk before the destination hears it: from here on this process never runs the guest.
        this.#measureDowntime(outgoing.pausedAt);
        this.#tell({ kind: 'migration-out', migrationId, state: 'completed' });
        peer?.say({ yours: true, progress: this.#progress });
        settle(outcome);
        this.#endProcess();
        return;
      }
      if (outcome === 'kept') {
        await this.#keepGuest(migrationId);
        this.#measureDowntime(outgoing.pausedAt);
      }
      this.#outgoing = null;
      peer?.close();
      settle(outcome);
      if (outcome === 'kept') await this.#lookAgain();
    });
  }

  /** Waits for QEMU's word on who has the guest; cuts a migration that was cancelled and doesn't end. */
  async #verdict(outgoing: Outgoing, begunAt: number): Promise<'given' | 'kept' | 'died'> {
    let cancelAt: number | null = null;
    let lastMove = { what: '', at: performance.now() };
    for (;;) {
      if (this.#over()) return 'died';
      if (!outgoing.cancelled && performance.now() > lastMove.at + this.#context.stallMs) {
        this.#trouble(`its migration is cancelled: it has made no progress for ${this.#context.stallMs} ms`);
        outgoing.cancelled = true;
      }
      try {
        const found = await this.#migration();
        const runState = await this.#runState();
        this.#progress = {
          migration_id: outgoing.migrationId,
          status: found.status,
          bytes_total: found.ram.total,
          bytes_sent: found.ram.transferred,
          bytes_left: found.ram.remaining,
          // QEMU's own figure leaves out that this agent stopped the guest before.
          downtime_ms: null,
          expected_downtime_ms:
            this.#context.migrationMode === 'pre_copy' ? (found['expected-downtime'] ?? null) : null,
          elapsed_ms: found['total-time'] || Math.round(performance.now() - begunAt),
        };
        const what = `${found.status} ${found.ram.transferred}`;
        if (what !== lastMove.what) lastMove = { what, at: performance.now() };
        const verdict = readSourceVerdict(runState, found.status);
        if (verdict === 'given') return 'given';
        if (verdict === 'kept') {
          if (found['error-desc'] !== undefined) this.#trouble(`its migration failed: ${found['error-desc']}`);
          return 'kept';
        }
        if (found.status === 'pre-switchover' && !outgoing.cancelled) {
          await this.#sayPaused(outgoing);
          await this.#execute('migrate-continue', { state: 'pre-switchover' });
        }
      } catch {
        // QEMU hangs, or its connection is broken for now.
      }
      if (outgoing.cancelled) {
        if (cancelAt === null) {
          cancelAt = performance.now();
          await this.#execute('migrate_cancel', {}, QUICK_MS).catch(() => {});
        } else if (performance.now() > cancelAt + YANK_AFTER_MS) {
          cancelAt = performance.now();
          await this.#qmp?.executeOutOfBand('yank', { instances: [{ type: 'migration' }] }, QUICK_MS).catch(() => {});
        }
      }
      await this.#sleep(LOOK_EVERY_MS);
    }
  }

  async #sayPaused(outgoing: Outgoing): Promise<void> {
    if (outgoing.pausedAt !== null) return;
    outgoing.pausedAt = performance.now();
    outgoing.peer?.say({ paused: await this.#console.tail() });
  }

  /** The guest went on, here or there, or is about to: how long it stood still is known. */
  #measureDowntime(pausedAt: number | null): void {
    if (this.#progress === null || pausedAt === null) return;
    this.#progress = { ...this.#progress, downtime_ms: Math.round(performance.now() - pausedAt) };
  }

  /** The guest has not left, and never will by this migration: it goes on here. */
  async #keepGuest(migrationId: string): Promise<void> {
    while (!this.#over()) {
      const runState = await this.#runState().catch(() => null);
      if (runState === 'shutdown' || runState === 'guest-panicked') break;
      // QEMU itself resumes a guest that ran until the end of a pre-copy.
      if (runState === 'running') break;
      if (runState !== null) {
        try {
          await this.#execute('cont');
          continue;
        } catch (error) {
          if (error instanceof QmpError) {
            this.#fail(`its guest can't go on: ${error.message}`);
            return;
          }
        }
      }
      await this.#sleep(LOOK_EVERY_MS);
    }
    if (this.#over()) return;
    this.#phase = 'running';
    this.#tell({ kind: 'migration-out', migrationId, state: 'failed' });
    this.#tell({ kind: 'state', state: 'running' });
  }

  #cancel(outgoing: Outgoing): void {
    outgoing.cancelled = true;
    this.#wake();
  }

  // ---- the destination's side ------------------------------------------------------------------------------------------

  /** Waits until it is certain who has the guest, and starts it, or gives up. */
  async #settle(incoming: Incoming): Promise<void> {
    let goneSince: number | null = null;
    while (!this.#over()) {
      const arrival = await this.#arrival();
      const word = await this.#sourceStatus(incoming);
      if (this.#over()) return;
      goneSince = word === 'gone' ? (goneSince ?? performance.now()) : null;
      const patienceOver = goneSince !== null && performance.now() > goneSince + PATIENCE_MS;
      switch (settleArrival(arrival, word, patienceOver)) {
        case 'arrive':
          await incoming.console;
          await this.#arrive(incoming.migrationId);
          return;
        case 'fail':
          this.#fail(arrival === 'failed' ? 'its guest did not arrive' : `the source's word: ${word}`);
          return;
        case 'wait':
          await this.#sleep(incoming.connected ? LOOK_EVERY_MS : ASK_EVERY_MS);
      }
    }
  }

  async #arrival(): Promise<'waiting' | 'complete' | 'failed'> {
    try {
      const { status } = await this.#migration();
      if (status === 'failed' || status === 'cancelled') return 'failed';
      if (status !== 'completed') return 'waiting';
      const runState = await this.#runState();
      return runState === 'paused' || runState === 'shutdown' ? 'complete' : 'waiting';
    } catch {
      return 'waiting';
    }
  }

  async #sourceStatus(incoming: Incoming): Promise<SourceStatus> {
    if (incoming.given) return 'given';
    if (incoming.connected) return 'undecided';
    const { source } = this.#journal;
    // The guest was never asked for.
    if (source === null) return 'kept';
    return askSource(this.#context.transport, source.agent, source.vmmId, incoming.migrationId);
  }

  async #arrive(migrationId: string): Promise<void> {
    if ((await this.#runState().catch(() => null)) !== 'shutdown') await this.#insist('cont');
    if (this.#over()) return;
    this.#incoming?.peer?.close();
    // Before it is said that the guest has arrived: who hears that may ask.
    this.#progress = this.#incoming?.progress ?? null;
    this.#measureDowntime(this.#incoming?.pausedAt ?? null);
    this.#incoming = null;
    this.#phase = 'running';
    this.#tell({ kind: 'state', state: 'running' });
    this.#tell({ kind: 'migration-in', migrationId, state: 'completed' });
    if (this.#journal.stopOnArrival) this.#shutDown();
    await this.#lookAgain();
  }

  // ---- after a restart of the agent ------------------------------------------------------------------------------------

  async #tryTakeUp(booked: BookedVm): Promise<boolean> {
    try {
      if (this.#qmp === null && !(await this.#connect())) return false;
      const runState = await this.#runState();
      const { status } = await this.#migration();
      this.#takingUp = false;
      this.#background(() => this.#takeUp(booked, runState, status));
      return true;
    } catch {
      return false;
    }
  }

  async #keepTakingUp(booked: BookedVm): Promise<void> {
    while (!this.#over()) {
      if (!worksIn(this.#pid, this.#folder)) {
        this.#takingUp = false;
        this.#ended('its process has gone');
        return;
      }
      // A destination that is frozen makes its source hang: without its connection, the source fails and answers.
      await this.#qmp?.executeOutOfBand('yank', { instances: [{ type: 'migration' }] }, QUICK_MS).catch(() => {});
      if (await this.#tryTakeUp(booked)) return;
      await this.#sleep(ASK_EVERY_MS);
    }
  }

  async #takeUp(booked: BookedVm, runState: string, migrationStatus: string): Promise<void> {
    const outgoing =
      booked.migrationOut !== null && booked.migrationOut.state === 'in_progress' ? booked.migrationOut : null;
    const arriving = booked.lastCommand === 'migration_target' && booked.migrationIn !== 'completed';
    const { migrationId } = booked;
    const step = recoverVm({
      runState,
      migrationStatus,
      lastCommand: booked.lastCommand,
      outgoing: outgoing !== null,
      incoming: !arriving ? 'none' : this.#journal.source === null ? 'source_unknown' : 'source_known',
    });
    if (runState === 'running') this.#begin();
    switch (step) {
      case 'wait':
        return;
      case 'run':
        this.run();
        return;
      case 'runs':
      case 'resume':
      case 'powered_off':
        if (outgoing !== null) {
          this.#phase = 'migrating_out';
          await this.#keepGuest(outgoing.migrationId);
        } else if (step === 'resume') await this.#insist('cont');
        this.#phase = 'running';
        if (step === 'powered_off') this.#poweredOff('it powered off while the agent was away');
        else if (this.#journal.stopAskedAt !== null) {
          this.#phase = 'stopping';
          this.#background(() => this.#pressPowerButton());
        } else if (outgoing === null && booked.state !== 'running') this.#tell({ kind: 'state', state: 'running' });
        return;
      case 'gave':
        this.#left = true;
        if (outgoing !== null)
          this.#tell({ kind: 'migration-out', migrationId: outgoing.migrationId, state: 'completed' });
        this.#endProcess();
        return;
      case 'cancel':
        this.#phase = 'migrating_out';
        if (outgoing !== null) this.#watchOver(outgoing.migrationId, null, true, async () => {});
        return;
      case 'arrived':
        this.#phase = 'migrating_in';
        if (migrationId !== null) await this.#arrive(migrationId);
        return;
      case 'settle': {
        if (migrationId === null) return;
        this.#phase = 'migrating_in';
        const incoming: Incoming = {
          migrationId,
          peer: null,
          connected: false,
          given: false,
          pausedAt: null,
          progress: null,
          console: Promise.resolve(),
        };
        this.#incoming = incoming;
        this.#background(() => this.#settle(incoming));
        return;
      }
      case 'panicked':
        this.#fail('its guest panicked');
        return;
      case 'fail':
        this.#fail(`nothing can become of it: QEMU says ${runState}`);
        return;
    }
  }

  // ---- small things ----------------------------------------------------------------------------------------------------

  #over(): boolean {
    return this.#released || this.#phase === 'ended';
  }

  #release(): void {
    this.#released = true;
    clearInterval(this.#rotation);
    this.#incoming?.peer?.close();
    this.#outgoing?.peer?.close();
    this.#server?.close();
    for (const socket of this.#sockets) socket.destroy();
    this.#wake();
  }

  /** Work that nobody waits for; what it throws means that the VM can't go on. */
  #background(work: () => Promise<void>): void {
    work().catch((error: unknown) => {
      if (this.#over()) return;
      this.#fail(error instanceof Error ? error.message : String(error));
    });
  }

  #note(change: Partial<Journal>): void {
    this.#journal = { ...this.#journal, ...change };
    const path = join(this.#folder, JOURNAL);
    writeFileSync(`${path}.new`, JSON.stringify(this.#journal), { flush: true });
    renameSync(`${path}.new`, path);
  }

  #keepConsoleSmall(): void {
    this.#rotation = setInterval(() => {
      if (this.#qmp !== null) void this.#console.rotate(this.#qmp).catch(() => {});
    }, ROTATE_EVERY_MS);
    this.#rotation.unref();
  }

  /** Sleeps until something happens, at most `ms`. */
  #sleep(ms: number): Promise<void> {
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

  #wake(): void {
    for (const wake of [...this.#wakers]) wake();
  }

  #begin(): void {
    if (this.#executing) return;
    this.#executing = true;
    this.#log('began', this.#phase);
  }

  #cease(reason: string): void {
    if (!this.#executing) return;
    this.#executing = false;
    this.#log('ceased', reason);
  }

  #log(event: GuestLogEntry['event'], reason: string): void {
    const { instanceId, vmmId } = this.spec;
    this.#context.log({ instance_id: instanceId, vmm_id: vmmId, event, reason, time: new Date().toISOString() });
  }

  #trouble(message: string): void {
    this.#context.onTrouble(`VMM ${this.spec.vmmId} (${this.spec.name}): ${message}`);
  }
}

/** Without the return path a source would call a migration completed that its destination has not loaded. */
const MIGRATION_CAPABILITIES = [
  { capability: 'events', state: true },
  { capability: 'return-path', state: true },
];

/** The host in `tcp:host:port`; IPv6 without its brackets. */
function hostOfUri(uri: string): string {
  return splitAddress(uri.slice('tcp:'.length)).host;
}

function describeDifference(here: MachineShape, there: MachineShape): string | null {
  for (const field of ['machine', 'accelerator', 'memoryMib', 'ncpus'] as const)
    if (here[field] !== there[field])
      return `the two VMs are unlike: ${field} is ${here[field]} at the source and ${there[field]} at the destination`;
  return null;
}
