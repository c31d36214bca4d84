import type { MigrationState, WireVmmState } from '../model/states.ts';

/** What a hypervisor is told of a VM when it is made. */
export interface VmSpec {
  readonly vmmId: string;
  readonly instanceId: string;
  readonly name: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  /** `ip:port` at which the VM's process can be reached, by the destination of a migration out of it. */
  readonly address: string;
  /** The VM is made to be migrated into. */
  readonly incoming: boolean;
}

/** What a hypervisor says of a VM, when it happens. */
export type VmEvent =
  | { readonly kind: 'state'; readonly state: WireVmmState }
  | { readonly kind: 'migration-in' | 'migration-out'; readonly migrationId: string; readonly state: MigrationState };

/** Says whether a stop was taken: `left` means that the guest has gone to the destination of its migration. */
export type StopAnswer = 'taken' | 'left';

/**
 * Runs VMs. It knows nothing of generations, reports or the control plane: that is the agent's book. Every method is
 * harmless when repeated. Events come in the order in which things happen.
 */
export interface Hypervisor {
  /** Makes a VM's process without running its guest. Throws when it can't be made. */
  create(spec: VmSpec, emit: (event: VmEvent) => void): Promise<void>;
  /** Runs the guest of a VM that was made. */
  run(vmmId: string): void;
  /** Asks the guest to power off; cancels a migration out of the VM unless the guest has left. */
  stop(vmmId: string): StopAnswer;
  reboot(vmmId: string): void;
  /** Fetches the guest from the VM at `sourceAddress` (`ip:port`). */
  migrateIn(vmmId: string, migrationId: string, sourceAddress: string): void;
  /** Ends a VM at once, without an event, and forgets it. */
  kill(vmmId: string): void;
  /** Ends every VM at once. */
  close(): void;
}
