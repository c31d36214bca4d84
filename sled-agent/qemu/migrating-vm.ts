/** What the two sides of a migration between QEMU processes have in common, and what both need of their VM. */
import type { MigrationProgress } from '../../wire/sled-protocol.ts';

/** What a migration needs of its VM: only that ends the process, and decides what the VM is when the guest has moved. */
export interface MigratingVm {
  /** Runs work that nobody waits for; what it throws means that the VM can't go on. */
  runInBackground(work: () => Promise<void>): void;
  /** Nothing can become of the VM: its process is ended, and then it is reported `failed`. */
  fail(reason: string): void;
}

/** Without the return path a source would call a migration completed that its destination has not loaded. */
export const MIGRATION_CAPABILITIES = [
  { capability: 'events', state: true },
  { capability: 'return-path', state: true },
];

/** How far the VM's last migration is, or how it ended. Both sides write to it, one migration at a time. */
export class MigrationMeter {
  #progress: MigrationProgress | null = null;

  /** As it was recorded last; `null` before the VM had a migration. */
  get progress(): MigrationProgress | null {
    return this.#progress;
  }

  /** Replaces what is known; `null` when a migration begins. */
  record(progress: MigrationProgress | null): void {
    this.#progress = progress;
  }

  /**
   * Records how long the guest stood still: from `pausedAt` (by `performance.now()`) to now. To be called when the guest
   * went on, here or on the other side, or is about to.
   */
  recordDowntime(pausedAt: number | null): void {
    if (this.#progress === null || pausedAt === null) return;
    this.#progress = { ...this.#progress, downtime_ms: Math.round(performance.now() - pausedAt) };
  }
}
