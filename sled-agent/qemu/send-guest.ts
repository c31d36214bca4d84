/**
 * The source's side of a migration: listens for destinations, sends the guest to the one that may have it, and watches until
 * QEMU's own states show who has it. The guest runs here after a migration only when that is over and did not complete
 * (`readSourceVerdict`); that it has left is on disk before the destination gets to know it.
 */
import type { Server, Socket } from 'node:net';
import { canonicalAddress, listensEverywhere } from '../../model/host-address.ts';
import { splitAddress, withPort } from '../../wire/sled-protocol.ts';
import { type FetchRequest, HandOverPeer } from './hand-over.ts';
import { MIGRATION_CAPABILITIES, type MigratingVm, type MigrationMeter } from './migrating-vm.ts';
import { secureMigration } from './migration-tls.ts';
import { LOOK_EVERY_MS, type MigrationInfo, type QemuProcess, QUICK_MS } from './qemu-process.ts';
import type { MachineShape } from './qemu-program.ts';
import { QmpError } from './qmp-client.ts';
import { readSourceVerdict } from './source-verdict.ts';
import type { QemuVmContext } from './vm-context.ts';
import type { VmState } from './vm-state.ts';

/** What a source needs of its VM. */
export interface SendingVm extends MigratingVm {
  /** The guest has left for good. Resolves when that is on disk. */
  guestLeft(migrationId: string): Promise<void>;
  /** Ends the process in order. */
  endInOrder(): void;
  /** Looks whether the guest is off: events may be missing. */
  lookAgain(): Promise<void>;
}

/** Who has the guest in the end. `died`: the process is gone, or the agent has let go of it. */
export type SendOutcome = 'given' | 'kept' | 'died';

interface Outgoing {
  readonly migrationId: string;
  /** The destination; `null` for a migration that an earlier agent began. */
  readonly peer: HandOverPeer | null;
  cancelled: boolean;
  /** Since when the guest stands still, by `performance.now()`; `null` while it runs. */
  pausedAt: number | null;
  readonly done: Promise<SendOutcome>;
}

/** How long a cancelled migration may go on before its connection is cut out of band, in milliseconds. */
const CUT_AFTER_MS = 1_000;

export class GuestSender {
  readonly #context: QemuVmContext;
  readonly #vm: SendingVm;
  readonly #state: VmState;
  readonly #shape: MachineShape;
  readonly #process: QemuProcess;
  readonly #meter: MigrationMeter;
  #server: Server | null = null;
  readonly #sockets = new Set<Socket>();
  #outgoing: Outgoing | null = null;

  constructor(
    context: QemuVmContext,
    vm: SendingVm,
    state: VmState,
    shape: MachineShape,
    process: QemuProcess,
    meter: MigrationMeter,
  ) {
    this.#context = context;
    this.#vm = vm;
    this.#state = state;
    this.#shape = shape;
    this.#process = process;
    this.#meter = meter;
  }

  /**
   * Listens for destinations again in an agent that was started anew: where the agent is now, which may be another address
   * than the one that the VM was made at; else at that one. Throws when it can't.
   */
  async listenAgain(): Promise<void> {
    const { address } = this.#state.spec;
    const agent = this.#context.agentAddress();
    const here = withPort(agent, splitAddress(address).port);
    const [first, second] = listensEverywhere(agent) ? [address, here] : [here, address];
    await this.listen(first).catch(() => this.listen(second));
  }

  /** Listens for destinations, by default at the VM's address. Throws when it can't. */
  async listen(address = this.#state.spec.address): Promise<void> {
    const server = this.#context.transport.serve((socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
      const peer = new HandOverPeer(
        socket,
        this.#context.silenceMs,
        (message) => {
          if ('fetch' in message) void this.#giveToDestination(message.fetch, socket, peer);
        },
        () => {
          if (this.#outgoing?.peer === peer) this.#cancel(this.#outgoing);
        },
      );
      const agentId = this.#context.transport.agentId();
      peer.send({
        hello: {
          vmm_id: this.#state.spec.vmmId,
          agent: this.#reachableAgent(socket),
          ...(agentId === null ? {} : { agent_id: agentId }),
        },
      });
    });
    const { host, port } = splitAddress(address);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host, resolve);
    });
    server.on('error', () => {});
    this.#server = server;
  }

  /** Cancels the migration that is under way. Resolves with who has the guest; `null` when there is none under way. */
  cancel(): Promise<SendOutcome> | null {
    if (this.#outgoing === null) return null;
    this.#cancel(this.#outgoing);
    return this.#outgoing.done;
  }

  /** Cancels a migration that an earlier agent began, and watches until it is settled who has the guest. */
  cancelEarlier(migrationId: string): void {
    this.#watchOver(migrationId, null, true, async () => {});
  }

  /** Has the guest, which has not left and never will by this migration, go on here. */
  async keepGuest(migrationId: string): Promise<void> {
    while (!this.#state.over) {
      const runState = await this.#process.runState().catch(() => null);
      if (runState === 'shutdown' || runState === 'guest-panicked') break;
      // QEMU itself resumes a guest that ran until the end of a pre-copy.
      if (runState === 'running') break;
      if (runState !== null) {
        try {
          await this.#process.execute('cont');
          continue;
        } catch (error) {
          if (error instanceof QmpError) {
            this.#vm.fail(`its guest can't go on: ${error.message}`);
            return;
          }
        }
      }
      await this.#process.sleep(LOOK_EVERY_MS);
    }
    if (this.#state.over) return;
    this.#state.enter('running');
    this.#state.emit({ kind: 'migration-out', migrationId, state: 'failed' });
    this.#state.emit({ kind: 'state', state: 'running' });
  }

  /** Breaks the conversation with the destination. */
  hangUp(): void {
    this.#outgoing?.peer?.close();
  }

  /** Breaks every conversation and listens no more. */
  close(): void {
    this.hangUp();
    this.#server?.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Where a destination reaches this agent: one that listens everywhere is where the destination has found this VM. */
  #reachableAgent({ localAddress, localFamily }: Socket): string {
    const agent = this.#context.agentAddress();
    const { port } = splitAddress(agent);
    if (!listensEverywhere(agent)) return agent;
    if (localAddress === undefined) return withPort(this.#state.spec.address, port);
    return canonicalAddress(localFamily === 'IPv6' ? `[${localAddress}]:${port}` : `${localAddress}:${port}`);
  }

  async #giveToDestination(request: FetchRequest, socket: Socket, peer: HandOverPeer): Promise<void> {
    const { isDestination } = this.#context.transport;
    if (isDestination !== null && !(await isDestination(socket, this.#state.spec.vmmId, request.migration_id))) {
      peer.send({ refused: 'the control plane knows of no such migration to this sled' });
      return;
    }
    if (!socket.destroyed) this.#give(request, peer);
  }

  #give(request: FetchRequest, peer: HandOverPeer): void {
    const phase = this.#state.phase;
    const reason =
      // An address is used again: a late call must not get another instance's guest.
      request.instance_id !== this.#state.spec.instanceId
        ? 'here is another instance'
        : phase !== 'running'
          ? `the source is ${phase}`
          : describeDifference(this.#shape, request.shape);
    if (reason !== null) {
      peer.send({ refused: reason });
      return;
    }
    const { migration_id: migrationId, uri } = request;
    this.#meter.record(null);
    this.#state.enter('migrating_out');
    this.#state.emit({ kind: 'state', state: 'migrating' });
    const unwritten = this.#state.emit({ kind: 'migration-out', migrationId, state: 'in_progress' });
    peer.send({ begin: true });
    // A guest must not stand still, half-way, for want of room to write down where it is.
    const cancelled = unwritten !== null || this.#context.faults.takeMigrationFailure('source') !== null;
    this.#watchOver(migrationId, peer, cancelled, (outgoing) => this.#send(outgoing, uri));
  }

  /** Begins the migration to `uri`, unless it was cancelled meanwhile. Throws what QEMU answers. */
  async #send(outgoing: Outgoing, uri: string): Promise<void> {
    const { disk, migrationMode, migrationBandwidth, transport } = this.#context;
    await this.#process.execute('migrate-set-capabilities', {
      capabilities: [
        ...MIGRATION_CAPABILITIES,
        { capability: 'pause-before-switchover', state: migrationMode === 'pre_copy' },
      ],
    });
    await this.#process.execute('migrate-set-parameters', {
      'max-bandwidth': migrationBandwidth,
      // Enough for what is left of a small guest, in milliseconds.
      'downtime-limit': 20,
    });
    const { host: serverHost } = splitAddress(uri.slice('tcp:'.length));
    await secureMigration(this.#process, disk, transport.holder, { endpoint: 'client', serverHost });
    if (migrationMode === 'stop_and_copy') {
      await this.#process.execute('stop');
      // It may have powered off meanwhile: then there is nothing to migrate.
      if ((await this.#process.runState()) !== 'paused') return;
      await this.#reportPaused(outgoing);
    }
    if (!outgoing.cancelled) await this.#process.execute('migrate', { uri });
  }

  /** Sends a guest, watches until it is settled who has it, and acts on it. */
  #watchOver(
    migrationId: string,
    peer: HandOverPeer | null,
    cancelled: boolean,
    send: (outgoing: Outgoing) => Promise<void>,
  ): void {
    let settle: (outcome: SendOutcome) => void = () => {};
    const done = new Promise<SendOutcome>((resolve) => {
      settle = resolve;
    });
    const outgoing: Outgoing = { migrationId, peer, cancelled, pausedAt: null, done };
    this.#outgoing = outgoing;
    this.#vm.runInBackground(async () => {
      const begunAt = performance.now();
      if (!outgoing.cancelled) {
        await send(outgoing).catch((error) => {
          this.#state.logTrouble(`its guest can't be sent: ${error.message}`);
          outgoing.cancelled = true;
        });
      }
      const outcome = await this.#awaitOutcome(outgoing, begunAt);
      if (outcome === 'given') {
        this.#meter.recordDowntime(outgoing.pausedAt);
        // On disk before the destination gets to know it: from here on this process never runs the guest.
        await this.#vm.guestLeft(migrationId);
        this.#outgoing = null;
        peer?.send({ yours: true, progress: this.#meter.progress });
        settle(outcome);
        if (!this.#state.over) this.#vm.endInOrder();
        return;
      }
      if (outcome === 'kept') {
        await this.keepGuest(migrationId);
        this.#meter.recordDowntime(outgoing.pausedAt);
      }
      this.#outgoing = null;
      peer?.close();
      settle(outcome);
      if (outcome === 'kept') await this.#vm.lookAgain();
    });
  }

  /** Waits until QEMU's states show who has the guest; cuts a migration that was cancelled and doesn't end. */
  async #awaitOutcome(outgoing: Outgoing, begunAt: number): Promise<SendOutcome> {
    const { stallMs } = this.#context;
    let cancelAt: number | null = null;
    let lastMove = { what: '', at: performance.now() };
    for (;;) {
      if (this.#state.over) return 'died';
      if (!outgoing.cancelled && performance.now() > lastMove.at + stallMs) {
        this.#state.logTrouble(`its migration is cancelled: it has made no progress for ${stallMs} ms`);
        outgoing.cancelled = true;
      }
      try {
        const info = await this.#process.migration();
        const runState = await this.#process.runState();
        this.#recordProgress(outgoing, info, begunAt);
        const what = `${info.status} ${info.ram.transferred}`;
        if (what !== lastMove.what) lastMove = { what, at: performance.now() };
        const verdict = readSourceVerdict(runState, info.status);
        if (verdict === 'given') return 'given';
        if (verdict === 'kept') {
          if (info['error-desc'] !== undefined) this.#state.logTrouble(`its migration failed: ${info['error-desc']}`);
          return 'kept';
        }
        if (info.status === 'pre-switchover' && !outgoing.cancelled) {
          await this.#reportPaused(outgoing);
          await this.#process.execute('migrate-continue', { state: 'pre-switchover' });
        }
      } catch {
        // QEMU hangs, or its connection is broken for now.
      }
      if (outgoing.cancelled) {
        if (cancelAt === null) {
          cancelAt = performance.now();
          await this.#process.execute('migrate_cancel', {}, QUICK_MS).catch(() => {});
        } else if (performance.now() > cancelAt + CUT_AFTER_MS) {
          cancelAt = performance.now();
          await this.#process.cutMigration();
        }
      }
      await this.#process.sleep(LOOK_EVERY_MS);
    }
  }

  #recordProgress(outgoing: Outgoing, info: MigrationInfo, begunAt: number): void {
    this.#meter.record({
      migration_id: outgoing.migrationId,
      status: info.status,
      bytes_total: info.ram.total,
      bytes_sent: info.ram.transferred,
      bytes_left: info.ram.remaining,
      // QEMU's own figure leaves out that this agent stopped the guest before.
      downtime_ms: null,
      expected_downtime_ms: this.#context.migrationMode === 'pre_copy' ? (info['expected-downtime'] ?? null) : null,
      elapsed_ms: info['total-time'] || Math.round(performance.now() - begunAt),
    });
  }

  /** Sends the destination the end of the console, once: the guest stands still. */
  async #reportPaused(outgoing: Outgoing): Promise<void> {
    if (outgoing.pausedAt !== null) return;
    outgoing.pausedAt = performance.now();
    outgoing.peer?.send({ paused: await this.#process.consoleTail() });
  }

  #cancel(outgoing: Outgoing): void {
    outgoing.cancelled = true;
    this.#process.wake();
  }
}

/** Why a guest can't move between two machines of these shapes; `null`: it can. */
export function describeDifference(here: MachineShape, there: MachineShape): string | null {
  for (const field of ['machine', 'accelerator', 'memoryMib', 'ncpus', 'cpuModel'] as const)
    if (here[field] !== there[field])
      return `the two VMs are unlike: ${field} is ${here[field]} at the source and ${there[field]} at the destination`;
  return null;
}
