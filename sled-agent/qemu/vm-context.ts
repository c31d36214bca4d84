/** What all VMs of a QEMU hypervisor share. */
import type { Disk } from '../disk.ts';
import type { PlantedFaults } from '../faults.ts';
import type { GuestLogEntry } from '../hypervisor.ts';
import type { PeerTransport } from '../peer-transport.ts';
import type { GuestImage } from './guest-image.ts';
import type { QemuProgram } from './qemu-program.ts';

export interface QemuVmContext {
  readonly program: QemuProgram;
  readonly image: GuestImage;
  readonly faults: PlantedFaults;
  /** How all that an agent writes of its VMs is written. */
  readonly disk: Disk;
  /** `stop_and_copy`: the guest stands still while its memory is copied. `pre_copy`: only for the rest. */
  readonly migrationMode: 'stop_and_copy' | 'pre_copy';
  /** The agent's own `ip:port`. */
  readonly agentAddress: () => string;
  /** How guests are handed over to other sleds. */
  readonly transport: PeerTransport;
  /** How long a guest may take to power off before its process is ended, in milliseconds. */
  readonly stopTimeoutMs: number;
  /** How long a silent connection between two agents counts as alive, in milliseconds. */
  readonly silenceMs: number;
  /** How fast a migration out may be, in bytes per second; 0 is without limit. */
  readonly migrationBandwidth: number;
  /** How long a migration may make no progress before its source cancels it, in milliseconds. */
  readonly stallMs: number;
  /** The processes end when this one does, however it ends. */
  readonly endWithAgent: boolean;
  /** Gets a message for people about each thing that went wrong. */
  readonly onTrouble: (message: string) => void;
  readonly log: (entry: GuestLogEntry) => void;
}
