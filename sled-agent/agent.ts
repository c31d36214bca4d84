/**
 * The authority on a sled: which VMMs it has, their states with the generations that only it counts, and which ids are
 * dead. It turns the protocol's commands into the hypervisor's, and the hypervisor's events into reports. Everything is
 * in its store before it is reported, so that a restarted agent goes on where the last one ended.
 * Source: section 7 of docs/design.md.
 */
import { isTerminalMigrationState, isTerminalVmmState } from '../model/states.ts';
import {
  type MigrationRuntime,
  NO_SUCH_INSTANCE,
  type RegisterRequest,
  type SerialConsoleData,
  type SledVmmState,
  VMM_UNREGISTERED,
  type VmmCommand,
  type VmmRuntime,
  type VmmStateAnswer,
} from '../wire/sled-protocol.ts';
import { type Hypervisor, UnfitGuest, type VmEvent, type VmSpec } from './hypervisor.ts';
import { Reporter } from './reporter.ts';
import type { SledIdentity } from './sled-identity.ts';
import { type VmmRecord, VmmStore } from './vmm-store.ts';

/** An answer that is not a success. */
export class AgentRefusal extends Error {
  override readonly name = 'AgentRefusal';
  readonly status: number;
  readonly errorCode: string;

  constructor(status: number, errorCode: string, message: string) {
    super(message);
    this.status = status;
    this.errorCode = errorCode;
  }
}

export interface AgentOptions {
  readonly threads: number;
  readonly memoryBytes: number;
  readonly controlPlaneUrl: string;
  readonly hypervisor: Hypervisor;
  /** The identity that the sled has joined with; without one it speaks plain HTTP. */
  readonly identity?: SledIdentity | undefined;
  /** Where its store is kept; in memory when `null`. */
  readonly dataDir: string | null;
  /** Whether guests may run here now: with fencing, as long as the lease lasts. By default they may. */
  readonly leaseHeld?: () => boolean;
}

const REPORT_CONNECTIONS = 8;

export class SledAgent {
  readonly #options: AgentOptions;
  readonly #store: VmmStore;
  /** VMMs whose processes are being made. */
  readonly #making = new Map<string, Promise<void>>();
  #ready = false;
  /** How often every guest was powered off: what was begun before such a moment is not finished after it. */
  #powerOffs = 0;
  readonly reporter: Reporter;

  private constructor(options: AgentOptions, store: VmmStore) {
    this.#options = options;
    this.#store = store;
    this.reporter = new Reporter(
      options.controlPlaneUrl,
      (vmmId, report) => this.#onReportDelivered(vmmId, report),
      options.identity?.connectToControlPlane(REPORT_CONNECTIONS),
    );
  }

  /** Opens the agent's store. Throws when it can't be read, or another agent has it. It answers 503 until {@link recover}. */
  static async open(options: AgentOptions): Promise<SledAgent> {
    return new SledAgent(options, await VmmStore.open(options.dataDir));
  }

  /** Finds out what runs here, and reports what happened while the agent was away. */
  async recover(): Promise<void> {
    const stored = [];
    for (const vmm of this.#store.all()) {
      this.reporter.report(vmm.vmmId, stateOf(vmm));
      if (isTerminalVmmState(vmm.runtime.state)) continue;
      stored.push({
        spec: specOf(vmm),
        listener: (event: VmEvent) => this.#onVmEvent(vmm.vmmId, event),
        state: vmm.runtime.state,
        lastCommand: vmm.lastCommand,
        migrationId: vmm.migrationId,
        migrationIn: vmm.migrationIn?.state ?? null,
        migrationOut:
          vmm.migrationOut === null
            ? null
            : { migrationId: vmm.migrationOut.migration_id, state: vmm.migrationOut.state },
      });
    }
    await this.#options.hypervisor.recover(stored);
    this.#ready = true;
  }

  /** Refuses with 503 as long as the agent doesn't know what runs here: not knowing yet is never "gone". */
  requireReady(): void {
    if (this.#ready) return;
    throw new AgentRefusal(503, 'NOT_READY', 'the sled agent has just started and is finding out what runs here');
  }

  /** The ids of the VMMs that live here, by the store. */
  living(): string[] {
    return this.#living().map((vmm) => vmm.vmmId);
  }

  /** Powers off every guest at once; their VMMs are Failed. Resolves when no process of theirs is left. */
  async powerOff(): Promise<void> {
    this.#powerOffs += 1;
    const living = this.#living();
    await Promise.all(living.map((vmm) => this.#options.hypervisor.kill(vmm.vmmId)));
    // Those whose processes were still being made: once more, when they are there.
    await Promise.allSettled(this.#making.values());
    await Promise.all(living.map((vmm) => this.#options.hypervisor.kill(vmm.vmmId)));
    for (const vmm of living) this.#recordKill(vmm);
  }

  #living(): VmmRecord[] {
    return this.#store.all().filter((vmm) => !isTerminalVmmState(vmm.runtime.state));
  }

  /** Records what a VMM has become that was killed. */
  #recordKill(vmm: VmmRecord): void {
    if (this.#store.get(vmm.vmmId) !== vmm || isTerminalVmmState(vmm.runtime.state)) return;
    this.#changeState(vmm, vmm.runtime.state === 'stopped' ? 'destroyed' : 'failed');
  }

  /** Refuses, to be tried again, to begin what needs a lease. */
  #requireLease(): void {
    if (this.#options.leaseHeld?.() ?? true) return;
    throw new AgentRefusal(
      503,
      'NO_LEASE',
      'the lease of this sled has lapsed: no guest may run here until it is renewed',
    );
  }

  /** Registers a VMM; the same once more gives its state as it is. */
  async register(vmmId: string, request: RegisterRequest): Promise<SledVmmState> {
    this.#refuseDead(vmmId);
    const known = this.#store.get(vmmId);
    if (known !== undefined) {
      if (known.instanceId !== request.instance_id) {
        throw new AgentRefusal(409, 'VMM_OF_ANOTHER_INSTANCE', `VMM ${vmmId} belongs to instance ${known.instanceId}`);
      }
      await this.#making.get(vmmId);
      return stateOf(known);
    }
    this.#requireLease();
    const { ncpus, memory_bytes: memoryBytes, name } = request.vmm_spec;
    const used = this.#living();
    const threadsLeft = this.#options.threads - used.reduce((sum, vmm) => sum + vmm.ncpus, 0);
    const memoryLeft = this.#options.memoryBytes - used.reduce((sum, vmm) => sum + vmm.memoryBytes, 0);
    if (ncpus > threadsLeft || memoryBytes > memoryLeft) {
      throw new AgentRefusal(
        409,
        'NO_ROOM',
        `${ncpus} CPUs and ${memoryBytes} bytes don't fit: ${threadsLeft} and ${memoryLeft} are left`,
      );
    }
    const record: VmmRecord = {
      vmmId,
      instanceId: request.instance_id,
      name,
      ncpus,
      memoryBytes,
      address: request.vmm_addr,
      migrationId: request.migration_id ?? null,
      runtime: { state: request.vmm_runtime.state, gen: request.vmm_runtime.gen, time_updated: now() },
      migrationIn: null,
      migrationOut: null,
      lastCommand: 'nothing',
      refusedMigration: false,
    };
    const powerOffs = this.#powerOffs;
    this.#store.save(record);
    const made = this.#make(record, request.vmm_spec.cpu_model ?? null).finally(() => this.#making.delete(vmmId));
    this.#making.set(vmmId, made);
    await made;
    // Unregistered while its process was being made.
    if (this.#store.isDead(vmmId)) {
      await this.#options.hypervisor.kill(vmmId);
      this.#refuseDead(vmmId);
    }
    if (this.#powerOffs !== powerOffs) {
      await this.#options.hypervisor.kill(vmmId);
      this.#recordKill(record);
      return stateOf(record);
    }
    this.reporter.report(vmmId, stateOf(record));
    return stateOf(record);
  }

  /** Ends a VMM and makes its id dead, whether it was known or not. Resolves when its process is gone. */
  async unregister(vmmId: string): Promise<SledVmmState | null> {
    this.#store.markDead(vmmId);
    await this.#making.get(vmmId)?.catch(() => {});
    const vmm = this.#store.get(vmmId);
    if (vmm === undefined) return null;
    await this.#options.hypervisor.kill(vmmId);
    this.#recordKill(vmm);
    return stateOf(vmm);
  }

  /** Has a VMM do what the control plane commands. Throws an {@link AgentRefusal}. */
  async command(vmmId: string, command: VmmCommand): Promise<SledVmmState> {
    const vmm = this.#require(vmmId);
    await this.#making.get(vmmId);
    switch (command.type) {
      case 'running':
        this.#refuseEnding(vmm);
        if (vmm.migrationId !== null && vmm.migrationIn?.state !== 'completed') {
          throw new AgentRefusal(409, 'MIGRATING_IN', `VMM ${vmmId} runs when its guest has arrived`);
        }
        if (vmm.lastCommand === 'nothing') {
          this.#requireLease();
          this.#update(vmm, { lastCommand: 'running' });
          this.#options.hypervisor.run(vmmId);
        }
        return stateOf(vmm);
      case 'stopped':
        if ((await this.#options.hypervisor.stop(vmmId)) === 'left') {
          throw new AgentRefusal(
            409,
            'GUEST_LEFT',
            `the guest of VMM ${vmmId} has left for the destination of its migration`,
          );
        }
        return stateOf(vmm);
      case 'reboot':
        this.#refuseEnding(vmm);
        this.#requireLease();
        this.#options.hypervisor.reboot(vmmId);
        return stateOf(vmm);
      case 'migration_target':
        // The same once more, also when it is over.
        if (vmm.lastCommand === 'migration_target') return stateOf(vmm);
        this.#refuseEnding(vmm);
        this.#requireLease();
        if (vmm.refusedMigration || vmm.migrationId === null || vmm.lastCommand !== 'nothing') {
          this.#update(vmm, { refusedMigration: true });
          throw new AgentRefusal(409, 'NOT_A_TARGET', `VMM ${vmmId} takes no migration in`);
        }
        this.#update(vmm, { lastCommand: 'migration_target' });
        this.#options.hypervisor.migrateIn(vmmId, vmm.migrationId, command.value.src_vmm_addr);
        return stateOf(vmm);
    }
  }

  /** A refused migration stays refused, so that an earlier command for it can't land after its saga unwound. */
  refuseMigration(vmmId: string): void {
    const vmm = this.#store.get(vmmId);
    if (vmm !== undefined && vmm.lastCommand === 'nothing') this.#update(vmm, { refusedMigration: true });
  }

  /** A VMM's state as it is, with how far its migration is where the hypervisor knows. */
  read(vmmId: string): VmmStateAnswer {
    const state = stateOf(this.#require(vmmId));
    const progress = this.#options.hypervisor.progress(vmmId);
    return progress === null ? state : { ...state, migration_progress: progress };
  }

  /** A piece of a VMM's serial console; `from` and `maxBytes` in bytes. Throws 409 where there is none. */
  async readConsole(vmmId: string, from: number, maxBytes: number): Promise<SerialConsoleData> {
    this.#require(vmmId);
    const piece = await this.#options.hypervisor.readConsole(vmmId, from, maxBytes);
    if (piece === null)
      throw new AgentRefusal(
        409,
        'NO_SERIAL_CONSOLE',
        `VMM ${vmmId} has no serial console: it is simulated, or has just ended`,
      );
    return { data: [...piece.data], last_byte_offset: piece.endOffset };
  }

  /** All that this sled has. */
  inventory(): (SledVmmState & { vmm_id: string; instance_id: string })[] {
    return this.#store.all().map((vmm) => ({ vmm_id: vmm.vmmId, instance_id: vmm.instanceId, ...stateOf(vmm) }));
  }

  /** The name of the instance that a VMM runs; `null` for an unknown one. */
  nameOf(vmmId: string): string | null {
    return this.#store.get(vmmId)?.name ?? null;
  }

  /** Test only: forgets a VMM as if it had never been, without a report. Resolves when its process is gone. */
  async lose(vmmId: string): Promise<void> {
    this.#store.remove(vmmId);
    this.reporter.forget(vmmId);
    await this.#options.hypervisor.kill(vmmId);
  }

  /** Stops reporting; ends every VM, or lets go of them as {@link Hypervisor.detach} says. */
  async close(vms: 'end' | 'detach'): Promise<void> {
    await this.reporter.stop();
    await (vms === 'end' ? this.#options.hypervisor.close() : this.#options.hypervisor.detach());
    this.#store.close();
  }

  async #make(record: VmmRecord, cpuModel: string | null): Promise<void> {
    const { vmmId } = record;
    try {
      const spec = { ...specOf(record), cpuModel };
      await this.#options.hypervisor.create(spec, (event) => this.#onVmEvent(vmmId, event));
    } catch (error) {
      this.#store.remove(vmmId);
      const message = `VMM ${vmmId} can't be made at ${record.address}: ${error instanceof Error ? error.message : error}`;
      if (error instanceof UnfitGuest) throw new AgentRefusal(422, 'UNFIT_GUEST', message);
      throw new AgentRefusal(503, 'VMM_NOT_MADE', message);
    }
  }

  #require(vmmId: string): VmmRecord {
    const vmm = this.#store.get(vmmId);
    if (vmm === undefined) throw new AgentRefusal(404, NO_SUCH_INSTANCE, `there is no VMM ${vmmId} on this sled`);
    return vmm;
  }

  #refuseDead(vmmId: string): void {
    if (!this.#store.isDead(vmmId)) return;
    throw new AgentRefusal(409, VMM_UNREGISTERED, `VMM ${vmmId} was unregistered: its id stays dead`);
  }

  #refuseEnding(vmm: VmmRecord): void {
    const { state } = vmm.runtime;
    if (state === 'stopping' || state === 'stopped' || isTerminalVmmState(state)) {
      throw new AgentRefusal(410, 'VMM_TERMINATING', `VMM ${vmm.vmmId} is ${state}`);
    }
  }

  #onVmEvent(vmmId: string, event: VmEvent): void {
    const vmm = this.#store.get(vmmId);
    if (vmm === undefined || isTerminalVmmState(vmm.runtime.state)) return;
    if (event.kind === 'state') {
      this.#changeState(vmm, event.state);
      return;
    }
    const side = event.kind === 'migration-in' ? 'migrationIn' : 'migrationOut';
    vmm[side] = sideOf(vmm[side], event.migrationId, event.state);
    this.#store.save(vmm);
    this.reporter.report(vmmId, stateOf(vmm));
  }

  #changeState(vmm: VmmRecord, state: VmmRuntime['state']): void {
    vmm.runtime = { state, gen: vmm.runtime.gen + 1, time_updated: now() };
    // A VMM that dies before its guest has arrived: its side of the migration failed.
    const arrivalOver = vmm.migrationIn !== null && isTerminalMigrationState(vmm.migrationIn.state);
    if (isTerminalVmmState(state) && vmm.migrationId !== null && !arrivalOver)
      vmm.migrationIn = sideOf(vmm.migrationIn, vmm.migrationId, 'failed');
    this.#store.save(vmm);
    this.reporter.report(vmm.vmmId, stateOf(vmm));
  }

  #update(vmm: VmmRecord, change: Partial<Pick<VmmRecord, 'lastCommand' | 'refusedMigration'>>): void {
    this.#store.save(Object.assign(vmm, change));
  }

  /** A terminal state is forgotten only when the control plane has dealt with its report and nothing of the VMM is left. */
  #onReportDelivered(vmmId: string, report: SledVmmState): void {
    if (!isTerminalVmmState(report.vmm_state.state)) return;
    this.#store.markDead(vmmId);
    void this.#options.hypervisor.kill(vmmId).then(() => this.#store.remove(vmmId));
  }
}

function specOf(vmm: VmmRecord): VmSpec {
  const { vmmId, instanceId, name, ncpus, memoryBytes, address } = vmm;
  return { vmmId, instanceId, name, ncpus, memoryBytes, address, incoming: vmm.migrationId !== null };
}

function stateOf(vmm: VmmRecord): SledVmmState {
  return {
    vmm_state: vmm.runtime,
    ...(vmm.migrationIn === null ? {} : { migration_in: vmm.migrationIn }),
    ...(vmm.migrationOut === null ? {} : { migration_out: vmm.migrationOut }),
  };
}

/** A side of a migration in its next state. The database's generation of a side starts at 1: the agent's first one is 2. */
function sideOf(
  before: MigrationRuntime | null,
  migrationId: string,
  state: MigrationRuntime['state'],
): MigrationRuntime {
  const gen = before?.migration_id === migrationId ? before.gen + 1 : 2;
  return { migration_id: migrationId, state, gen, time_updated: now() };
}

function now(): string {
  return new Date().toISOString();
}
