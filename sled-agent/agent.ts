/**
 * The book of a sled: which VMMs it has, their states with the generations that only it counts, and which ids are dead.
 * It turns the protocol's commands into the hypervisor's, and the hypervisor's events into reports.
 * Source: section 7 of the design.
 */
import { isTerminalVmmState } from '../model/states.ts';
import {
  type MigrationRuntime,
  NO_SUCH_INSTANCE,
  type RegisterRequest,
  type SledVmmState,
  VMM_UNREGISTERED,
  type VmmCommand,
  type VmmRuntime,
} from '../wire/sled-protocol.ts';
import type { Hypervisor, VmEvent } from './hypervisor.ts';
import { Reporter } from './reporter.ts';

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

interface VmmRecord {
  readonly vmmId: string;
  readonly instanceId: string;
  readonly name: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
  readonly migrationId: string | null;
  runtime: VmmRuntime;
  migrationIn: MigrationRuntime | null;
  migrationOut: MigrationRuntime | null;
  /** What it was told last, so that a second telling is known. */
  told: 'nothing' | 'running' | 'migration_target';
  refusedMigration: boolean;
}

export interface AgentOptions {
  readonly threads: number;
  readonly memoryBytes: number;
  readonly controlPlaneUrl: string;
  readonly hypervisor: Hypervisor;
}

export class SledAgent {
  readonly #vmms = new Map<string, VmmRecord>();
  readonly #dead = new Set<string>();
  readonly #options: AgentOptions;
  readonly reporter: Reporter;

  constructor(options: AgentOptions) {
    this.#options = options;
    this.reporter = new Reporter(options.controlPlaneUrl, (vmmId, report) => this.#reported(vmmId, report));
  }

  /** Registers a VMM; the same once more gives its state as it is. */
  async register(vmmId: string, request: RegisterRequest): Promise<SledVmmState> {
    if (this.#dead.has(vmmId)) {
      throw new AgentRefusal(409, VMM_UNREGISTERED, `VMM ${vmmId} was unregistered: its id stays dead`);
    }
    const known = this.#vmms.get(vmmId);
    if (known !== undefined) {
      if (known.instanceId !== request.instance_id) {
        throw new AgentRefusal(409, 'VMM_OF_ANOTHER_INSTANCE', `VMM ${vmmId} belongs to instance ${known.instanceId}`);
      }
      return stateOf(known);
    }
    const { ncpus, memory_bytes: memoryBytes, name } = request.vmm_spec;
    const used = [...this.#vmms.values()].filter((vmm) => !isTerminalVmmState(vmm.runtime.state));
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
      migrationId: request.migration_id ?? null,
      runtime: { state: request.vmm_runtime.state, gen: request.vmm_runtime.gen, time_updated: now() },
      migrationIn: null,
      migrationOut: null,
      told: 'nothing',
      refusedMigration: false,
    };
    this.#vmms.set(vmmId, record);
    try {
      await this.#options.hypervisor.create(
        {
          vmmId,
          instanceId: request.instance_id,
          name,
          ncpus,
          memoryBytes,
          address: request.vmm_addr,
          incoming: record.migrationId !== null,
        },
        (event) => this.#happened(vmmId, event),
      );
    } catch (error) {
      this.#vmms.delete(vmmId);
      throw new AgentRefusal(
        503,
        'VMM_NOT_MADE',
        `VMM ${vmmId} can't be made at ${request.vmm_addr}: ${error instanceof Error ? error.message : error}`,
      );
    }
    // Unregistered while its process was being made.
    if (this.#dead.has(vmmId)) {
      this.#options.hypervisor.kill(vmmId);
      throw new AgentRefusal(409, VMM_UNREGISTERED, `VMM ${vmmId} was unregistered: its id stays dead`);
    }
    this.reporter.report(vmmId, stateOf(record));
    return stateOf(record);
  }

  /** Ends a VMM and makes its id dead, whether it was known or not. */
  unregister(vmmId: string): SledVmmState | null {
    this.#dead.add(vmmId);
    const vmm = this.#vmms.get(vmmId);
    if (vmm === undefined) return null;
    this.#options.hypervisor.kill(vmmId);
    if (isTerminalVmmState(vmm.runtime.state)) return stateOf(vmm);
    const migrationIn = vmm.migrationIn;
    if (migrationIn !== null && !isOver(migrationIn)) vmm.migrationIn = advance(migrationIn, 'failed');
    this.#become(vmm, vmm.runtime.state === 'stopped' ? 'destroyed' : 'failed');
    return stateOf(vmm);
  }

  /** Tells a VMM what to do. */
  command(vmmId: string, command: VmmCommand): SledVmmState {
    const vmm = this.#require(vmmId);
    switch (command.type) {
      case 'running':
        this.#refuseEnding(vmm);
        if (vmm.migrationId !== null && vmm.migrationIn?.state !== 'completed') {
          throw new AgentRefusal(409, 'MIGRATING_IN', `VMM ${vmmId} runs when its guest has arrived`);
        }
        if (vmm.told === 'nothing') {
          vmm.told = 'running';
          this.#options.hypervisor.run(vmmId);
        }
        return stateOf(vmm);
      case 'stopped':
        if (this.#options.hypervisor.stop(vmmId) === 'left') {
          throw new AgentRefusal(
            409,
            'GUEST_LEFT',
            `the guest of VMM ${vmmId} has left for the destination of its migration`,
          );
        }
        return stateOf(vmm);
      case 'reboot':
        this.#refuseEnding(vmm);
        this.#options.hypervisor.reboot(vmmId);
        return stateOf(vmm);
      case 'migration_target':
        // The same once more, also when it is over.
        if (vmm.told === 'migration_target') return stateOf(vmm);
        this.#refuseEnding(vmm);
        if (vmm.refusedMigration || vmm.migrationId === null || vmm.told !== 'nothing') {
          vmm.refusedMigration = true;
          throw new AgentRefusal(409, 'NOT_A_TARGET', `VMM ${vmmId} takes no migration in`);
        }
        vmm.told = 'migration_target';
        this.#options.hypervisor.migrateIn(vmmId, vmm.migrationId, command.value.src_vmm_addr);
        return stateOf(vmm);
    }
  }

  /** A refused migration stays refused, so that an earlier telling can't land after its saga unwound. */
  refuseMigration(vmmId: string): void {
    const vmm = this.#vmms.get(vmmId);
    if (vmm !== undefined && vmm.told === 'nothing') vmm.refusedMigration = true;
  }

  /** A VMM's state as it is. */
  read(vmmId: string): SledVmmState {
    return stateOf(this.#require(vmmId));
  }

  /** All that this sled has. */
  inventory(): (SledVmmState & { vmm_id: string; instance_id: string })[] {
    return [...this.#vmms.values()].map((vmm) => ({ vmm_id: vmm.vmmId, instance_id: vmm.instanceId, ...stateOf(vmm) }));
  }

  /** The name of the instance that a VMM runs; `null` for an unknown one. */
  nameOf(vmmId: string): string | null {
    return this.#vmms.get(vmmId)?.name ?? null;
  }

  /** Test only: forgets a VMM as if it had never been, without a word. */
  lose(vmmId: string): void {
    this.#options.hypervisor.kill(vmmId);
    this.#vmms.delete(vmmId);
    this.reporter.forget(vmmId);
  }

  /** Ends every VM and stops reporting. */
  async close(): Promise<void> {
    await this.reporter.stop();
    this.#options.hypervisor.close();
  }

  #require(vmmId: string): VmmRecord {
    const vmm = this.#vmms.get(vmmId);
    if (vmm === undefined) throw new AgentRefusal(404, NO_SUCH_INSTANCE, `there is no VMM ${vmmId} on this sled`);
    return vmm;
  }

  #refuseEnding(vmm: VmmRecord): void {
    const { state } = vmm.runtime;
    if (state === 'stopping' || state === 'stopped' || isTerminalVmmState(state)) {
      throw new AgentRefusal(410, 'VMM_TERMINATING', `VMM ${vmm.vmmId} is ${state}`);
    }
  }

  #happened(vmmId: string, event: VmEvent): void {
    const vmm = this.#vmms.get(vmmId);
    if (vmm === undefined || isTerminalVmmState(vmm.runtime.state)) return;
    if (event.kind === 'state') {
      if (isTerminalVmmState(event.state) && vmm.migrationIn !== null && !isOver(vmm.migrationIn)) {
        vmm.migrationIn = advance(vmm.migrationIn, 'failed');
      }
      this.#become(vmm, event.state);
      return;
    }
    const side = event.kind === 'migration-in' ? 'migrationIn' : 'migrationOut';
    const before = vmm[side];
    vmm[side] =
      before?.migration_id === event.migrationId
        ? advance(before, event.state)
        : { migration_id: event.migrationId, state: event.state, gen: 2, time_updated: now() };
    this.reporter.report(vmmId, stateOf(vmm));
  }

  #become(vmm: VmmRecord, state: VmmRuntime['state']): void {
    vmm.runtime = { state, gen: vmm.runtime.gen + 1, time_updated: now() };
    this.reporter.report(vmm.vmmId, stateOf(vmm));
  }

  /** A terminal state is forgotten only after the control plane has heard it. */
  #reported(vmmId: string, report: SledVmmState): void {
    if (!isTerminalVmmState(report.vmm_state.state)) return;
    this.#options.hypervisor.kill(vmmId);
    this.#vmms.delete(vmmId);
    this.#dead.add(vmmId);
  }
}

function stateOf(vmm: VmmRecord): SledVmmState {
  return {
    vmm_state: vmm.runtime,
    ...(vmm.migrationIn === null ? {} : { migration_in: vmm.migrationIn }),
    ...(vmm.migrationOut === null ? {} : { migration_out: vmm.migrationOut }),
  };
}

function advance(side: MigrationRuntime, state: MigrationRuntime['state']): MigrationRuntime {
  return { ...side, state, gen: side.gen + 1, time_updated: now() };
}

function isOver(side: MigrationRuntime): boolean {
  return side.state === 'completed' || side.state === 'failed';
}

function now(): string {
  return new Date().toISOString();
}
