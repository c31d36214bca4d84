/** Runs, resets and powers off the guest of a VM, outside of migrations. */
import { monotonicMs } from '../lease-file.ts';
import type { QemuProcess } from './qemu-process.ts';
import type { VmJournal } from './vm-journal.ts';
import type { VmState } from './vm-state.ts';

/** What the guest's power needs of its VM. */
export interface PoweredVm {
  /** Runs work that nobody waits for; what it throws means that the VM can't go on. */
  runInBackground(work: () => Promise<void>): void;
  /** Ends the process in order. */
  endInOrder(): void;
}

const POWER_BUTTON_EVERY_MS = 1_000;
/** Why a guest is off that did not power itself off. */
const OVERDUE = 'it did not power off in time';
/** How long after its last reset a guest counts as running again; how long after its start it can be reset; in milliseconds. */
const CALM_MS = 1_000;
const FIRST_MOMENTS_MS = 500;

export class GuestPower {
  readonly #vm: PoweredVm;
  readonly #state: VmState;
  readonly #journal: VmJournal;
  readonly #process: QemuProcess;
  readonly #stopTimeoutMs: number;
  /** When the guest was let run here, and when its reboot is over if nothing resets it before; by `performance.now()`. */
  #ranAt = Number.NEGATIVE_INFINITY;
  #calmAt = 0;
  #poweringOff = false;
  /** When the guest was asked to power off, by the monotonic clock, whether or not that could be written down. */
  #stopAskedAtMs: number | null = null;

  /** `stopTimeoutMs`: how long the guest may take to power off, in milliseconds. */
  constructor(vm: PoweredVm, state: VmState, journal: VmJournal, process: QemuProcess, stopTimeoutMs: number) {
    this.#vm = vm;
    this.#state = state;
    this.#journal = journal;
    this.#process = process;
    this.#stopTimeoutMs = stopTimeoutMs;
  }

  /** Whether the guest is off for good. */
  get isOff(): boolean {
    return this.#poweringOff;
  }

  /** Runs the guest of a VM that was made. */
  run(): void {
    if (this.#state.phase !== 'made') return;
    this.#vm.runInBackground(async () => {
      await this.#process.executeUntilAnswered('cont');
      this.#ranAt = performance.now();
      if (this.#state.phase !== 'made') return;
      this.#state.enter('running');
      this.#state.emit({ kind: 'state', state: 'running' });
    });
  }

  /** Resets the guest, where it runs. */
  reboot(): void {
    if (this.#state.phase !== 'running') return;
    this.#rebootUntilCalm();
    // Not before QEMU has taken the reset, however long that takes.
    this.#calmAt = Number.POSITIVE_INFINITY;
    this.#vm.runInBackground(async () => {
      // A reset that meets the firmware's first moments hangs the guest: seen with QEMU 7.2 and SeaBIOS 1.16.
      while (this.#state.phase === 'rebooting' && performance.now() < this.#ranAt + FIRST_MOMENTS_MS)
        await this.#process.sleep(this.#ranAt + FIRST_MOMENTS_MS - performance.now());
      if (this.#state.phase === 'rebooting') await this.#process.executeUntilAnswered('system_reset');
      this.#calmAt = performance.now() + CALM_MS;
    });
  }

  /** QEMU has reset the guest, whoever asked for it. */
  onReset(): void {
    if (this.#state.phase === 'running' || this.#state.phase === 'rebooting') this.#rebootUntilCalm();
  }

  /**
   * Asks the guest to power off, and ends its process when that takes too long. A guest that never ran is off at once. It is
   * done in any case; that it was asked is not on disk until {@link recordStop}.
   */
  shutDown(): void {
    const neverRan = this.#state.phase === 'made';
    this.#state.enter('stopping');
    this.#state.emit({ kind: 'state', state: 'stopping' });
    if (neverRan) {
      this.onPoweredOff('it had not run');
      return;
    }
    this.#stopAskedAtMs = this.#journal.entries.stopAskedAtMs ?? monotonicMs();
    this.#vm.runInBackground(() => this.#pressPowerButton());
  }

  /** Writes down that the guest was asked to power off, for the agent that is started after this one. Throws a `DiskError`. */
  recordStop(): void {
    if (this.#stopAskedAtMs !== null && this.#journal.entries.stopAskedAtMs === null)
      this.#journal.write({ stopAskedAtMs: this.#stopAskedAtMs });
  }

  /** Goes on with the {@link shutDown} that an earlier agent began. */
  continueShutDown(): void {
    this.#stopAskedAtMs = this.#journal.entries.stopAskedAtMs;
    this.#state.enter('stopping');
    this.#vm.runInBackground(() => this.#pressPowerButton());
  }

  /**
   * The guest is off: its process is of no more use. Where the guest did that itself, the process stays, as the only one that
   * can tell a restarted agent so, until it is on disk.
   */
  onPoweredOff(reason: string): void {
    const { phase } = this.#state;
    // In a hand-over, QEMU's states at its end decide: an arriving guest may have powered off before it was sent.
    if (phase === 'migrating_in' || phase === 'migrating_out') return;
    if (this.#poweringOff || phase === 'ended') return;
    this.#poweringOff = true;
    if (phase !== 'stopping') this.#state.emit({ kind: 'state', state: 'stopping' });
    this.#state.logCeased(reason);
    const unwritten = this.#state.emit({ kind: 'state', state: 'stopped' });
    if (unwritten === null || reason === OVERDUE) this.#vm.endInOrder();
    else
      void unwritten.then(() => {
        if (!this.#state.over) this.#vm.endInOrder();
      });
  }

  /** Test only: the guest's power button is pressed until it powers itself off. */
  halt(): void {
    this.#vm.runInBackground(async () => {
      while (this.#state.phase === 'running' && !this.#state.released) {
        await this.#process.execute('system_powerdown').catch(() => {});
        await this.#process.sleep(POWER_BUTTON_EVERY_MS);
      }
    });
  }

  /**
   * It reboots, until nothing has reset it for a while: one reset is several to QEMU, since the firmware, which finds that
   * it has run before, resets the machine twice more in its first moments (SeaBIOS: `tryReboot`).
   */
  #rebootUntilCalm(): void {
    this.#calmAt = performance.now() + CALM_MS;
    if (this.#state.phase !== 'running') return;
    this.#state.enter('rebooting');
    this.#state.emit({ kind: 'state', state: 'rebooting' });
    this.#vm.runInBackground(async () => {
      for (;;) {
        const leftMs = this.#calmAt - performance.now();
        if (leftMs > 0) await this.#process.sleep(Math.min(leftMs, CALM_MS));
        if (this.#state.over || this.#state.phase !== 'rebooting') return;
        if (performance.now() >= this.#calmAt) break;
      }
      this.#state.enter('running');
      this.#state.emit({ kind: 'state', state: 'running' });
    });
  }

  /** Presses the power button again and again: a guest that boots doesn't notice it. */
  async #pressPowerButton(): Promise<void> {
    const deadline = (this.#stopAskedAtMs ?? monotonicMs()) + this.#stopTimeoutMs;
    while (this.#state.phase === 'stopping' && !this.#state.released && !this.#poweringOff) {
      if (monotonicMs() > deadline) {
        this.onPoweredOff(OVERDUE);
        return;
      }
      await this.#process.execute('system_powerdown').catch(() => {});
      await this.#process.sleep(Math.min(POWER_BUTTON_EVERY_MS, Math.max(1, deadline - monotonicMs() + 1)));
    }
  }
}
