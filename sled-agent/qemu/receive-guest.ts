/**
 * The destination's side of a migration: has QEMU take the guest in, asks the source for it, and runs it when all of it is
 * here and the source has let it go, or is dead (`settleArrival`).
 */
import { type SourceStatus, settleArrival } from '../../model/hand-over.ts';
import { type MigrationProgress, withPort } from '../../wire/sled-protocol.ts';
import { askSource, type HandOverMessage, HandOverPeer } from './hand-over.ts';
import { MIGRATION_CAPABILITIES, type MigratingVm, type MigrationMeter } from './migrating-vm.ts';
import { admitSource, secureMigration } from './migration-tls.ts';
import { ASK_EVERY_MS, LOOK_EVERY_MS, type QemuProcess } from './qemu-process.ts';
import type { QemuVmContext } from './vm-context.ts';
import type { VmJournal } from './vm-journal.ts';
import type { VmState } from './vm-state.ts';

/** What a destination needs of its VM. */
export interface ReceivingVm extends MigratingVm {
  /** The guest has come, runs here, and is reported to: what was asked of it meanwhile can be done. */
  guestArrived(): Promise<void>;
}

interface Incoming {
  readonly migrationId: string;
  peer: HandOverPeer | null;
  connected: boolean;
  /** The source has let the guest go. */
  given: boolean;
  /** When the source reported that the guest stands still, by `performance.now()`. */
  pausedAt: number | null;
  /** How the migration was, as the source reported at its end. */
  progress: MigrationProgress | null;
  /** Resolves when the console goes on where it was at the source. */
  console: Promise<void>;
}

/** How long after the source's death what it had sent may still be on its way, in milliseconds. */
const PATIENCE_MS = 5_000;

export class GuestReceiver {
  readonly #context: QemuVmContext;
  readonly #vm: ReceivingVm;
  readonly #state: VmState;
  readonly #journal: VmJournal;
  readonly #process: QemuProcess;
  readonly #meter: MigrationMeter;
  #incoming: Incoming | null = null;

  constructor(
    context: QemuVmContext,
    vm: ReceivingVm,
    state: VmState,
    journal: VmJournal,
    process: QemuProcess,
    meter: MigrationMeter,
  ) {
    this.#context = context;
    this.#vm = vm;
    this.#state = state;
    this.#journal = journal;
    this.#process = process;
    this.#meter = meter;
  }

  /** Fetches the guest from the VM at `sourceAddress` (`ip:port`). */
  fetch(migrationId: string, sourceAddress: string): void {
    this.#state.enter('migrating_in');
    const failure = this.#context.faults.takeMigrationFailure('target');
    if (failure === 'before') {
      this.#vm.fail('a fault was planted on this side of the migration');
      return;
    }
    this.#vm.runInBackground(async () => {
      const incoming = newIncoming(migrationId, true);
      this.#incoming = incoming;
      const uri = await this.#openPort();
      incoming.peer = HandOverPeer.dial(
        this.#context.transport,
        sourceAddress,
        this.#context.silenceMs,
        (message, peer) => this.#onMessage(incoming, message, peer, uri, failure === 'middle'),
        () => {
          incoming.connected = false;
          this.#process.wake();
        },
      );
      await this.#settle(incoming);
    });
  }

  /** Goes on with a migration that an earlier agent began: asks the source's agent who has the guest. */
  resume(migrationId: string): void {
    this.#state.enter('migrating_in');
    const incoming = newIncoming(migrationId, false);
    this.#incoming = incoming;
    this.#vm.runInBackground(() => this.#settle(incoming));
  }

  /** Runs the guest, which has come whole and is this VM's. */
  async arrive(migrationId: string): Promise<void> {
    const runState = await this.#process.runState().catch(() => null);
    if (runState !== 'shutdown') await this.#process.executeUntilAnswered('cont');
    if (this.#state.over) return;
    this.#incoming?.peer?.close();
    // Before the guest is reported to have arrived: who gets the report may ask.
    this.#meter.record(this.#incoming?.progress ?? null);
    this.#meter.recordDowntime(this.#incoming?.pausedAt ?? null);
    this.#incoming = null;
    this.#state.enter('running');
    this.#state.emit({ kind: 'state', state: 'running' });
    this.#state.emit({ kind: 'migration-in', migrationId, state: 'completed' });
    await this.#vm.guestArrived();
  }

  /** Breaks the conversation with the source. */
  hangUp(): void {
    this.#incoming?.peer?.close();
  }

  /** Has QEMU wait for a guest. Returns where, as an URI of QEMU's. Throws what QEMU answers. */
  async #openPort(): Promise<string> {
    const { address } = this.#state.spec;
    await this.#process.execute('migrate-set-capabilities', { capabilities: MIGRATION_CAPABILITIES });
    const { disk, transport } = this.#context;
    await secureMigration(this.#process, disk, transport.holder, { endpoint: 'server' });
    await this.#process.execute('migrate-incoming', { uri: `tcp:${withPort(address, 0)}` });
    const port = (await this.#process.migration())['socket-address']?.[0]?.port;
    if (port === undefined) throw new Error('QEMU does not say where it takes a guest in');
    return `tcp:${withPort(address, port)}`;
  }

  #onMessage(
    incoming: Incoming,
    message: HandOverMessage,
    peer: HandOverPeer,
    uri: string,
    crashesHalfWay: boolean,
  ): void {
    const { migrationId } = incoming;
    if ('hello' in message) {
      // Without it on disk the guest is not asked for: what this throws breaks the conversation.
      const { vmm_id: vmmId, agent, agent_id: agentId = null } = message.hello;
      this.#journal.write({ source: { vmmId, agent, agentId } });
      const { instanceId } = this.#state.spec;
      const { shape } = this.#journal.entries;
      this.#vm.runInBackground(async () => {
        // Until then QEMU takes a guest from no sled.
        await admitSource(this.#process, this.#context.transport.sledAt(peer.socket));
        peer.send({ fetch: { migration_id: migrationId, instance_id: instanceId, uri, shape } });
      });
    } else if ('begin' in message) {
      this.#state.emit({ kind: 'migration-in', migrationId, state: 'in_progress' });
      if (crashesHalfWay) this.#process.crash();
    } else if ('refused' in message) this.#vm.fail(`the source refuses: ${message.refused}`);
    else if ('paused' in message) {
      incoming.pausedAt = performance.now();
      incoming.console = incoming.console
        .then(() => this.#process.continueConsole(message.paused))
        .catch((error) => this.#state.logTrouble(`its console does not go on where it was: ${error.message}`));
    } else if ('yours' in message) {
      incoming.given = true;
      incoming.progress = message.progress ?? null;
      this.#process.wake();
    }
  }

  /** Waits until it is certain who has the guest, and runs it, or gives up. */
  async #settle(incoming: Incoming): Promise<void> {
    let goneSince: number | null = null;
    while (!this.#state.over) {
      const arrival = await this.#arrival();
      const status = await this.#sourceStatus(incoming);
      if (this.#state.over) return;
      goneSince = status === 'gone' ? (goneSince ?? performance.now()) : null;
      const patienceOver = goneSince !== null && performance.now() > goneSince + PATIENCE_MS;
      switch (settleArrival(arrival, status, patienceOver)) {
        case 'arrive':
          await incoming.console;
          await this.arrive(incoming.migrationId);
          return;
        case 'fail':
          this.#vm.fail(arrival === 'failed' ? 'its guest did not arrive' : `the source's status: ${status}`);
          return;
        case 'wait':
          await this.#process.sleep(incoming.connected ? LOOK_EVERY_MS : ASK_EVERY_MS);
      }
    }
  }

  async #arrival(): Promise<'waiting' | 'complete' | 'failed'> {
    try {
      const { status } = await this.#process.migration();
      if (status === 'failed' || status === 'cancelled') return 'failed';
      if (status !== 'completed') return 'waiting';
      const runState = await this.#process.runState();
      return runState === 'paused' || runState === 'shutdown' ? 'complete' : 'waiting';
    } catch {
      return 'waiting';
    }
  }

  async #sourceStatus(incoming: Incoming): Promise<SourceStatus> {
    if (incoming.given) return 'given';
    if (incoming.connected) return 'undecided';
    const { source } = this.#journal.entries;
    // The guest was never asked for.
    if (source === null) return 'kept';
    return askSource(this.#context.transport, source, incoming.migrationId);
  }
}

function newIncoming(migrationId: string, connected: boolean): Incoming {
  return {
    migrationId,
    peer: null,
    connected,
    given: false,
    pausedAt: null,
    progress: null,
    console: Promise.resolve(),
  };
}
