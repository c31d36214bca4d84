import { z } from 'zod';
import type { MigrationState, WireVmmState } from '../model/states.ts';
import type { MigrationProgress } from '../wire/sled-protocol.ts';

/** What a VM is made from. */
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
  /** The CPU that its guest is to see; `null` or absent: the hypervisor's own choice. */
  readonly cpuModel?: string | null;
}

/** A change of a VM, reported by its hypervisor when it happens. */
export type VmEvent =
  | { readonly kind: 'state'; readonly state: WireVmmState }
  | { readonly kind: 'migration-in' | 'migration-out'; readonly migrationId: string; readonly state: MigrationState };

/** Gets the events of a VM. When it returns the event is on disk: a hypervisor may act on having reported it. */
export type VmListener = (event: VmEvent) => void;

/** Whether a stop was taken: `left` means that the guest has gone to the destination of its migration. */
export type StopAnswer = 'taken' | 'left';

/** What the agent has stored of a VM that lived when the agent ended. */
export interface StoredVm {
  readonly spec: VmSpec;
  readonly listener: VmListener;
  readonly state: WireVmmState;
  /** The last command before the agent ended. */
  readonly lastCommand: 'nothing' | 'running' | 'migration_target';
  /** The migration that the VM is made for, or `null`. */
  readonly migrationId: string | null;
  readonly migrationIn: MigrationState | null;
  readonly migrationOut: { readonly migrationId: string; readonly state: MigrationState } | null;
}

/** A piece of what a guest wrote to its serial console. Offsets count bytes since the guest began, across migrations. */
export interface ConsolePiece {
  readonly data: Buffer;
  /** The offset after the last byte of `data`. */
  readonly endOffset: number;
}

/** The guest can't be made on this hypervisor, whoever asks how often: the message says why. */
export class UnfitGuest extends Error {
  override readonly name = 'UnfitGuest';
}

/** Throws {@link UnfitGuest} for a guest with a CPU that is not among those of a hypervisor that tells them apart. */
export function requireCpuModel(offered: readonly string[] | null, wanted: string | null | undefined): void {
  if (wanted == null || offered === null || offered.includes(wanted)) return;
  throw new UnfitGuest(`the guest's CPU model is ${wanted}, which this sled does not offer`);
}

/**
 * Runs VMs. It knows nothing of generations, reports or the control plane: those are the agent's. Every method is
 * harmless when repeated. Events come in the order in which things happen.
 */
export interface Hypervisor {
  /** The CPU models that guests here can be given, the one that they get by default first; `null`: they aren't told apart. */
  readonly cpuModels: readonly string[] | null;
  /** Makes a VM's process without running its guest. Throws {@link UnfitGuest}, or another error when it can't be made now. */
  create(spec: VmSpec, listener: VmListener): Promise<void>;
  /**
   * Takes up the VMs of an earlier agent and reports what became of them meanwhile. Resolves once it is known which
   * of them live; ends what runs here without being stored. Called once, before anything else.
   */
  recover(stored: readonly StoredVm[]): Promise<void>;
  /** Runs the guest of a VM that was made. */
  run(vmmId: string): void;
  /** Asks the guest to power off; cancels a migration out of the VM unless the guest has left. */
  stop(vmmId: string): StopAnswer | Promise<StopAnswer>;
  reboot(vmmId: string): void;
  /** Fetches the guest from the VM at `sourceAddress` (`ip:port`). */
  migrateIn(vmmId: string, migrationId: string, sourceAddress: string): void;
  /** How far a VM's migration out is, or was, or how the one into it ended; `null` when there was none. */
  progress(vmmId: string): MigrationProgress | null;
  /**
   * What the guest wrote to its serial console from an offset on (from the oldest byte that is kept, if that is later), at
   * most `maxBytes`. A negative offset counts from the end. `null`: this VM has no serial console, or none any more.
   */
  readConsole(vmmId: string, fromOffset: number, maxBytes: number): Promise<ConsolePiece | null>;
  /** Ends a VM at once, without an event, and forgets it. Resolves when nothing of it is left. */
  kill(vmmId: string): Promise<void>;
  /** Ends every VM at once. */
  close(): Promise<void>;
  /** Lets go of the VMs: those that can live without the agent live on, and {@link Hypervisor.recover} finds them. */
  detach(): Promise<void>;
}

/** When a guest began or ceased to execute here: what a witness needs to show that none ever ran twice at a time. */
export const guestLogEntry = z.object({
  instance_id: z.string(),
  vmm_id: z.string(),
  event: z.enum(['began', 'ceased']),
  reason: z.string(),
  time: z.iso.datetime(),
  /** The same moment on the monotonic clock of the machine, in milliseconds, where it is known: no clock that is set can change it. */
  monotonic_ms: z.number().optional(),
});
export type GuestLogEntry = Readonly<z.infer<typeof guestLogEntry>>;

/** What tests do to VMs and see of them, beside what the agent does. */
export interface WitnessedHypervisor extends Hypervisor {
  readonly guestLog: readonly GuestLogEntry[];
  /** The guest powers itself off. */
  halt(vmmId: string): void;
  /** The VM's process dies. */
  crash(vmmId: string): void;
  /** How far a guest has counted; `null` when there is none here. */
  count(vmmId: string): number | null;
}
