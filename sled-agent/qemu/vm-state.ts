/** The phase of a VM, and what others learn of it: the agent by events, the guest log, and the operator by messages. */
import type { GuestLogEntry, Unwritten, VmEvent, VmListener, VmSpec } from '../hypervisor.ts';
import type { QemuVmContext } from './vm-context.ts';

export type VmPhase =
  | 'made'
  | 'running'
  | 'rebooting'
  | 'migrating_out'
  | 'migrating_in'
  | 'stopping'
  | 'ending'
  | 'ended';

export class VmState {
  readonly spec: VmSpec;
  readonly #context: Pick<QemuVmContext, 'log' | 'onTrouble'>;
  readonly #listener: VmListener;
  #phase: VmPhase = 'made';
  #released = false;
  /** By the guest log, the guest executes here. */
  #executing = false;

  constructor(spec: VmSpec, context: Pick<QemuVmContext, 'log' | 'onTrouble'>, listener: VmListener) {
    this.spec = spec;
    this.#context = context;
    this.#listener = listener;
  }

  get phase(): VmPhase {
    return this.#phase;
  }

  /** Enters a phase. What has ended stays so, whatever was on its way when it did. */
  enter(phase: VmPhase): void {
    if (this.#phase !== 'ended') this.#phase = phase;
  }

  /** The agent has let go of the VM, or is ending it: nothing more is reported or done. */
  get released(): boolean {
    return this.#released;
  }

  release(): void {
    this.#released = true;
  }

  /** The process has ended, or the agent has let go of the VM. */
  get over(): boolean {
    return this.#released || this.#phase === 'ended';
  }

  /** Reports an event to the agent. `null`: it is on disk; else this resolves when it is. */
  emit(event: VmEvent): Unwritten {
    return this.#released ? null : this.#listener(event);
  }

  /** Writes to the guest log that the guest executes here, unless that is there. */
  logBegan(): void {
    if (this.#executing) return;
    this.#executing = true;
    this.#logGuest('began', this.#phase);
  }

  /** Writes to the guest log that the guest executes here no more, where it did. */
  logCeased(reason: string): void {
    if (!this.#executing) return;
    this.#executing = false;
    this.#logGuest('ceased', reason);
  }

  /** Passes a message on to the operator. */
  logTrouble(message: string): void {
    this.#context.onTrouble(`VMM ${this.spec.vmmId} (${this.spec.name}): ${message}`);
  }

  #logGuest(event: GuestLogEntry['event'], reason: string): void {
    const { instanceId, vmmId } = this.spec;
    this.#context.log({ instance_id: instanceId, vmm_id: vmmId, event, reason, time: new Date().toISOString() });
  }
}
