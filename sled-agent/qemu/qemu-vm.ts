/**
 * One VM: its phase, and what becomes of its guest. The process, and the two sides of a migration, are parts of their own
 * (`qemu-process.ts`, `guest-power.ts`, `send-guest.ts`, `receive-guest.ts`). States come from QEMU's own events and statuses.
 *
 * Who runs the guest: QEMU always starts with -S, so that only this agent's `cont` lets a guest run. A destination gives it
 * when QEMU has everything and the source has reported that it let go, or is dead (`settleArrival`). A source gives it after a
 * migration only when QEMU's states show that the migration is over and did not complete (`readSourceVerdict`). What was
 * decided is on disk before it is reported. So at no point, whoever dies, two processes run one guest, and it is lost only
 * when every process that had all of it is dead.
 *
 * Under TCG the guest stands still while its memory is copied: QEMU 7.2 loses track of the pages that a running guest
 * writes then, and corrupts it. Under KVM it runs on, and stands still for the rest only.
 */

import type { MigrationProgress } from '../../wire/sled-protocol.ts';
import type { StopAnswer, StoredVm, VmListener, VmSpec } from '../hypervisor.ts';
import { GuestPower, type PoweredVm } from './guest-power.ts';
import { MigrationMeter } from './migrating-vm.ts';
import { QemuProcess, type TakenUp } from './qemu-process.ts';
import { type MachineShape, qemuArguments } from './qemu-program.ts';
import type { QmpEvent } from './qmp-client.ts';
import { GuestReceiver, type ReceivingVm } from './receive-guest.ts';
import { GuestSender, type SendingVm } from './send-guest.ts';
import type { QemuVmContext } from './vm-context.ts';
import { VmJournal } from './vm-journal.ts';
import { recoverVm } from './vm-recovery.ts';
import { VmState } from './vm-state.ts';

export class QemuVm {
  readonly #context: QemuVmContext;
  readonly #state: VmState;
  readonly #journal: VmJournal;
  readonly #process: QemuProcess;
  readonly #meter = new MigrationMeter();
  readonly #power: GuestPower;
  readonly #sender: GuestSender;
  readonly #receiver: GuestReceiver;
  /** The guest has gone to the destination of its migration. */
  #left = false;
  #leave: (outcome: 'given') => void = () => {};
  /** Resolves when it is decided that the guest has gone. */
  readonly #leaving = new Promise<'given'>((resolve) => {
    this.#leave = resolve;
  });

  /**
   * `folder` must be a real path, the VM's own. `shape` is what it is made with; `null` reads it from the folder, and throws
   * when it is not there or can't be read.
   */
  constructor(spec: VmSpec, folder: string, shape: MachineShape | null, context: QemuVmContext, listener: VmListener) {
    this.#context = context;
    const state = new VmState(spec, context, listener);
    const { disk } = context;
    const journal = shape === null ? VmJournal.read(disk, folder) : VmJournal.begin(disk, folder, shape);
    const process = new QemuProcess(folder, context, {
      isOver: () => state.over,
      onEvent: (event) => this.#onEvent(event),
      onReconnect: () => this.#runInBackground(() => this.#lookAgain()),
      onEnd: (reason) => this.#ended(reason),
    });
    const vm: PoweredVm & SendingVm & ReceivingVm = {
      runInBackground: (work) => this.#runInBackground(work),
      fail: (reason) => this.#fail(reason),
      endInOrder: () => this.#endInOrder(),
      lookAgain: () => this.#lookAgain(),
      guestLeft: (migrationId) => this.#guestLeft(migrationId),
      guestArrived: () => this.#guestArrived(),
    };
    this.#state = state;
    this.#journal = journal;
    this.#process = process;
    this.#power = new GuestPower(vm, state, journal, process, context.stopTimeoutMs);
    this.#sender = new GuestSender(context, vm, state, journal.entries.shape, process, this.#meter);
    this.#receiver = new GuestReceiver(context, vm, state, journal, process, this.#meter);
  }

  /** Makes the VM's process, its guest not running. Throws with what QEMU printed when it doesn't come up. */
  async start(): Promise<void> {
    await this.#sender.listen();
    const { vmmId, incoming } = this.#state.spec;
    const args = qemuArguments(vmmId, this.#journal.entries.shape, this.#context.image, { paused: true, incoming });
    // Before the process is there, so that it is never found without it.
    this.#journal.write();
    await this.#process.start(args);
  }

  /**
   * Takes up a process that an earlier agent started. Resolves when its state is known, or QEMU doesn't answer for now: the
   * process is there, which is what must be known, and it is asked again until it answers or ends.
   */
  async adopt(pid: number, stored: StoredVm): Promise<void> {
    this.#process.adopt(pid);
    await this.#sender.listenAgain().catch((error) => {
      this.#state.logTrouble(
        `can't listen for destinations, here or at ${this.#state.spec.address} (${error.message}): no migration out of it is possible`,
      );
    });
    await this.#process.takeUp((found) => this.#runInBackground(() => this.#recover(stored, found)));
  }

  /** Runs the guest. */
  run(): void {
    this.#power.run();
  }

  /** Asks the guest to power off; cancels a migration out of the VM unless the guest has left. */
  async stop(): Promise<StopAnswer> {
    switch (this.#state.phase) {
      case 'migrating_out': {
        // Decided, though not on disk yet: it is not waited for here.
        if (this.#left) return 'left';
        const outcome = this.#sender.cancel();
        if (outcome !== null && (await Promise.race([outcome, this.#leaving])) === 'given') return 'left';
        if (!this.#state.over) this.#shutDown();
        return 'taken';
      }
      case 'migrating_in':
        this.#journal.write({ stopOnArrival: true });
        return 'taken';
      case 'made':
      case 'running':
      case 'rebooting':
        this.#shutDown();
        return 'taken';
      case 'stopping':
        this.#power.recordStop();
        return this.#left ? 'left' : 'taken';
      case 'ending':
      case 'ended':
        return this.#left ? 'left' : 'taken';
    }
  }

  /** Resets the guest, where it runs. */
  reboot(): void {
    this.#power.reboot();
  }

  /** Fetches the guest from the VM at `sourceAddress` (`ip:port`). */
  migrateIn(migrationId: string, sourceAddress: string): void {
    if (this.#state.phase === 'made') this.#receiver.fetch(migrationId, sourceAddress);
  }

  /** How far the VM's last migration is, or how it ended; `null` before it had one. */
  progress(): MigrationProgress | null {
    return this.#meter.progress;
  }

  /** A piece of the console; `null` once the VM has been ended: while its files go away, what is left would look like a fresh start. */
  async readConsole(fromOffset: number, maxBytes: number): Promise<{ data: Buffer; endOffset: number } | null> {
    const piece = await this.#process.readConsole(fromOffset, maxBytes);
    return this.#state.released ? null : piece;
  }

  /** Ends the process at once, without an event, and leaves nothing of it. */
  async kill(): Promise<void> {
    this.#release();
    await this.#process.end();
    this.#process.dismiss();
    this.#state.logCeased('killed');
    this.#state.enter('ended');
    await this.#context.disk.removeTreeSoon(this.#process.folder);
  }

  /** Lets go of the process, which lives on. */
  detach(): void {
    this.#release();
    this.#process.disconnect();
  }

  /** Test only: the guest's power button is pressed until it powers itself off. */
  halt(): void {
    this.#power.halt();
  }

  /** Test only: the process dies. */
  crash(): void {
    this.#process.crash();
  }

  /** What the guest counted to last; `null` before it has counted. */
  count(): number | null {
    return this.#process.lastCount();
  }

  #onEvent({ event, data }: QmpEvent): void {
    switch (event) {
      case 'RESUME':
        this.#state.logBegan();
        break;
      case 'STOP':
        this.#state.logCeased('stopped');
        break;
      case 'SHUTDOWN':
        // Other reasons are this agent's own `quit`, or a signal; then the process ends.
        if (data.guest === true) this.#power.onPoweredOff(String(data.reason));
        break;
      case 'RESET':
        this.#power.onReset();
        break;
      case 'GUEST_PANICKED':
        this.#fail('its guest panicked');
        break;
    }
  }

  /** Events were lost with a connection. */
  async #lookAgain(): Promise<void> {
    const runState = await this.#process.runState();
    if (runState === 'shutdown') this.#power.onPoweredOff('it was found powered off');
    if (runState === 'guest-panicked') this.#fail('its guest panicked');
    this.#process.wake();
  }

  /** Powers the guest off, and writes down that it was asked. Throws a `DiskError` when that can't be written: it is asked all the same. */
  #shutDown(): void {
    this.#power.shutDown();
    this.#power.recordStop();
  }

  async #guestLeft(migrationId: string): Promise<void> {
    this.#left = true;
    this.#leave('given');
    await this.#state.emit({ kind: 'migration-out', migrationId, state: 'completed' });
  }

  async #guestArrived(): Promise<void> {
    // The agent that is started after this one has `stopOnArrival` on disk.
    if (this.#journal.entries.stopOnArrival) this.#power.shutDown();
    await this.#lookAgain();
  }

  /** Ends the process in order; its end is reported as `destroyed`. */
  #endInOrder(): void {
    this.#state.enter('ending');
    this.#runInBackground(async () => {
      await this.#process.quit();
      this.#ended('it was ended in order');
    });
  }

  /** Nothing can become of the VM: its process is ended, and then it is reported `failed`. */
  #fail(reason: string): void {
    if (this.#state.over || this.#state.phase === 'ending') return;
    this.#state.logTrouble(reason);
    this.#runInBackground(async () => {
      await this.#process.end();
      this.#ended(reason);
    });
  }

  /** The process is gone. A dead source can't report who has the guest of a migration under way: its destination does. */
  #ended(reason: string): void {
    if (this.#state.phase === 'ended') return;
    const inOrder = this.#state.phase === 'ending' || this.#power.isOff;
    this.#state.enter('ended');
    this.#process.dismiss();
    this.#state.logCeased(reason);
    this.#receiver.hangUp();
    if (!inOrder && !this.#state.released) this.#state.logTrouble(reason);
    this.#state.emit({ kind: 'state', state: inOrder ? 'destroyed' : 'failed' });
    this.#sender.hangUp();
    this.#process.wake();
  }

  /** Goes on where an earlier agent ended, by what it stored and what QEMU answers. */
  async #recover(stored: StoredVm, { runState, migrationStatus }: TakenUp): Promise<void> {
    const outgoing =
      stored.migrationOut !== null && stored.migrationOut.state === 'in_progress' ? stored.migrationOut : null;
    const arriving = stored.lastCommand === 'migration_target' && stored.migrationIn !== 'completed';
    const { migrationId } = stored;
    const step = recoverVm({
      runState,
      migrationStatus,
      lastCommand: stored.lastCommand,
      outgoing: outgoing !== null,
      incoming: !arriving ? 'none' : this.#journal.entries.source === null ? 'source_unknown' : 'source_known',
    });
    if (runState === 'running') this.#state.logBegan();
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
          this.#state.enter('migrating_out');
          await this.#sender.keepGuest(outgoing.migrationId);
        } else if (step === 'resume') await this.#process.executeUntilAnswered('cont');
        // The process may have ended meanwhile, and that has been reported.
        if (this.#state.over) return;
        this.#state.enter('running');
        if (step === 'powered_off') this.#power.onPoweredOff('it powered off while the agent was away');
        else if (this.#journal.entries.stopAskedAtMs !== null) this.#power.continueShutDown();
        else if (outgoing === null && stored.state !== 'running') this.#state.emit({ kind: 'state', state: 'running' });
        return;
      case 'gave':
        if (outgoing === null) this.#left = true;
        else await this.#guestLeft(outgoing.migrationId);
        if (!this.#state.over) this.#endInOrder();
        return;
      case 'cancel':
        this.#state.enter('migrating_out');
        if (outgoing !== null) this.#sender.cancelEarlier(outgoing.migrationId);
        return;
      case 'arrived':
        this.#state.enter('migrating_in');
        if (migrationId !== null) await this.#receiver.arrive(migrationId);
        return;
      case 'settle':
        if (migrationId === null) return;
        this.#receiver.resume(migrationId);
        return;
      case 'panicked':
        this.#fail('its guest panicked');
        return;
      case 'fail':
        this.#fail(`nothing can become of it: QEMU says ${runState}`);
        return;
    }
  }

  #release(): void {
    this.#state.release();
    this.#process.stopConsoleRotation();
    this.#receiver.hangUp();
    this.#sender.close();
    this.#process.wake();
  }

  /** Runs work that nobody waits for; what it throws means that the VM can't go on. */
  #runInBackground(work: () => Promise<void>): void {
    work().catch((error: unknown) => {
      if (this.#state.over) return;
      this.#fail(error instanceof Error ? error.message : String(error));
    });
  }
}
