/**
 * The authority on a sled: which VMMs it has, their states with the generations that only it counts, and which ids are
 * dead. It turns the protocol's commands into the hypervisor's, and the hypervisor's events into reports. Everything is
 * in its store before it is reported or answered, so that a restarted agent goes on where the last one ended.
 *
 * Where the store can't be written (`disk.ts`): what needs no record is done, guests are powered off among it; what has
 * happened waits in its order, until it can be written; and no answer but 503 or 507 is given about a VMM of which
 * something waits. So nothing that was acknowledged is lost, and who asks again is answered when it is on disk.
 * Source: section 7 of docs/design.md.
 */
import { isTerminalMigrationState, isTerminalVmmState } from '../model/states.ts';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import {
  type MigrationRuntime,
  NO_SUCH_INSTANCE,
  type RegisterRequest,
  type SerialConsoleData,
  SLED_EXPUNGED,
  type SledVmmState,
  VMM_UNREGISTERED,
  type VmmCommand,
  type VmmRuntime,
  type VmmStateAnswer,
} from '../wire/sled-protocol.ts';
import { ControlPlaneMarks } from './control-plane-marks.ts';
import { asDiskError, type Disk } from './disk.ts';
import { type Hypervisor, UnfitGuest, type Unwritten, type VmEvent, type VmSpec } from './hypervisor.ts';
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
  /** How it is written; the agent's from then on. */
  readonly disk: Disk;
  /** Gets a message for people about what went wrong and is nobody's answer. */
  readonly onTrouble?: ((message: string) => void) | undefined;
  /** Whether guests may run here now: with fencing, as long as the lease lasts. By default they may. */
  readonly leaseHeld?: () => boolean;
  /** The agent's id, for its reports; `null` while it can't be kept. */
  readonly agentId?: (() => string | null) | undefined;
  /** Which sled this is, where the control plane does not say it with each VMM. */
  readonly sledId?: string | undefined;
}

/** The listener, files, pipes and sockets of a guest and its process, at most. */
const DESCRIPTORS_OF_A_GUEST = 8;

/** Refuses, to be tried again, a guest for whose files and connections the reserve would have to be taken. */
function requireDescriptors(): void {
  const lacking = processDescriptors.whyNotFor(DESCRIPTORS_OF_A_GUEST);
  if (lacking !== null) throw new AgentRefusal(503, 'NO_FILE_DESCRIPTORS', lacking);
}

const REPORT_CONNECTIONS = 8;

/** What becomes of a VMM's record; the same one where nothing does. */
type Change = (vmm: VmmRecord) => VmmRecord;

/** A change that is not on disk yet. */
interface UnwrittenChange {
  change: Change;
  /** The state that it is about, where it is nothing else. */
  readonly state: VmmRuntime['state'] | null;
  /** Those who wait until it is on disk. */
  readonly waiting: (() => void)[];
}

/** States that follow each other for as long as a guest lives: of those that could not be written the last one counts. */
const PASSING: ReadonlySet<VmmRuntime['state'] | null> = new Set(['running', 'rebooting']);

export class SledAgent {
  readonly #options: AgentOptions;
  readonly #store: VmmStore;
  readonly #disk: Disk;
  /** The changes of VMMs that are not on disk yet, in their order. */
  readonly #unwritten = new Map<string, UnwrittenChange[]>();
  /** Ids that are to be dead, and are not on disk as such yet. */
  readonly #dying = new Set<string>();
  /** VMMs whose processes are being made. */
  readonly #making = new Map<string, Promise<void>>();
  #ready = false;
  /** How often every guest was powered off: what was begun before such a moment is not finished after it. */
  #powerOffs = 0;
  /** The sleds that were expunged, of those that this agent was or is. */
  readonly #expunged = new Set<string>();
  readonly reporter: Reporter;

  private constructor(options: AgentOptions, store: VmmStore) {
    this.#options = options;
    this.#store = store;
    this.#disk = options.disk;
    this.reporter = new Reporter(
      options.controlPlaneUrl,
      (vmmId, report) => this.#onReportDelivered(vmmId, report),
      options.identity?.connectToControlPlane(REPORT_CONNECTIONS),
      (vmmId) => this.#onVmmOfExpungedSled(vmmId),
      options.onTrouble,
      new ControlPlaneMarks(options.dataDir, options.disk),
      options.agentId,
    );
  }

  /** Opens the agent's store. Throws as {@link VmmStore.open}. It answers 503 until {@link recover}. */
  static async open(options: AgentOptions): Promise<SledAgent> {
    return new SledAgent(options, await VmmStore.open(options.dataDir, options.disk));
  }

  /** What keeps it from doing its work, in sentences; empty when it is well. */
  get trouble(): string[] {
    const { trouble } = processDescriptors;
    return [...(trouble === null ? [] : [trouble]), ...this.#disk.trouble];
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

  /** The ids of the VMMs that live here: what is over is over, whether or not it could be written down. */
  living(): string[] {
    return this.#living().map((vmm) => vmm.vmmId);
  }

  /** The sleds whose VMMs live here, by what the control plane has called this one: one, unless it was added anew. */
  sledIds(): string[] {
    const ids = this.#living().map((vmm) => this.#sledOf(vmm));
    return [...new Set(ids.filter((id) => id !== null))];
  }

  /**
   * The control plane has said that a sled was expunged: what lives here of it is ended, and no VMM is taken for it any more.
   * Said again it means the same. Resolves when no process of its guests is left.
   */
  async endExpunged(sledId: string): Promise<void> {
    this.#expunged.add(sledId);
    const living = this.#living().filter((vmm) => this.#sledOf(vmm) === sledId);
    if (living.length === 0) return;
    this.#options.onTrouble?.(
      `this sled (${sledId}) was expunged: its ${living.length} guest${living.length === 1 ? ' is' : 's are'} powered off, and it takes no more`,
    );
    await this.#end(living);
  }

  #sledOf(vmm: VmmRecord): string | null {
    return vmm.sledId ?? this.#options.sledId ?? null;
  }

  #onVmmOfExpungedSled(vmmId: string): void {
    const vmm = this.#store.get(vmmId);
    const sledId = vmm === undefined ? null : this.#sledOf(vmm);
    if (vmm === undefined) return;
    if (sledId !== null) {
      this.hearExpunged(sledId);
    } else if (!isTerminalVmmState(vmm.runtime.state)) {
      this.#options.onTrouble?.(`the sled of VMM ${vmmId} was expunged: its guest is powered off`);
      this.#orSayWhy(this.#end([vmm]));
    }
  }

  /** Does as {@link endExpunged}, in its own time. Never throws: what is left is ended when it is heard again. */
  hearExpunged(sledId: string): void {
    this.#orSayWhy(this.endExpunged(sledId));
  }

  #orSayWhy(ending: Promise<void>): void {
    ending.catch((error: unknown) =>
      this.#options.onTrouble?.(
        `not every guest could be powered off: ${error instanceof Error ? error.message : error}`,
      ),
    );
  }

  /** Powers off every guest at once; their VMMs are Failed. Resolves when no process of theirs is left. */
  async powerOff(): Promise<void> {
    this.#powerOffs += 1;
    await this.#end(this.#living());
  }

  async #end(ended: readonly VmmRecord[]): Promise<void> {
    const living = ended.map(({ vmmId }) => vmmId);
    await Promise.all(living.map((vmmId) => this.#options.hypervisor.kill(vmmId)));
    // Those whose processes were still being made: once more, when they are there.
    await Promise.allSettled(this.#making.values());
    await Promise.all(living.map((vmmId) => this.#options.hypervisor.kill(vmmId)));
    for (const vmmId of living) this.#recordKill(vmmId);
  }

  #living(): VmmRecord[] {
    return this.#store.all().filter((vmm) => !isTerminalVmmState(this.#present(vmm).runtime.state));
  }

  /** What a VMM has come to, written or not. */
  #present(vmm: VmmRecord): VmmRecord {
    return (this.#unwritten.get(vmm.vmmId) ?? []).reduce((before, { change }) => change(before), vmm);
  }

  /** Records what a VMM has become that was killed. */
  #recordKill(vmmId: string): void {
    this.#record(vmmId, null, (vmm) => toState(vmm, vmm.runtime.state === 'stopped' ? 'destroyed' : 'failed'));
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

  /** Refuses for good a VMM of a sled that was expunged. */
  #refuseExpunged(sledId: string | null): void {
    if (sledId === null || !this.#expunged.has(sledId)) return;
    throw new AgentRefusal(409, SLED_EXPUNGED, 'this sled was expunged: it takes no VMM any more');
  }

  /** Registers a VMM; the same once more gives its state as it is. Throws an {@link AgentRefusal}, or a `DiskError`. */
  async register(vmmId: string, request: RegisterRequest): Promise<SledVmmState> {
    this.#refuseDead(vmmId);
    const known = this.#store.get(vmmId);
    if (known !== undefined) {
      if (known.instanceId !== request.instance_id) {
        throw new AgentRefusal(409, 'VMM_OF_ANOTHER_INSTANCE', `VMM ${vmmId} belongs to instance ${known.instanceId}`);
      }
      await this.#making.get(vmmId);
      return this.#writtenState(vmmId);
    }
    const sledId = request.sled_id ?? this.#options.sledId ?? null;
    this.#refuseExpunged(sledId);
    this.#requireLease();
    requireDescriptors();
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
      sledId,
    };
    const powerOffs = this.#powerOffs;
    try {
      this.#store.save(record);
    } catch (error) {
      // It may have come to the disk without being certain to stay there.
      this.#store.abandon(vmmId);
      throw error;
    }
    const made = this.#make(record, request.vmm_spec.cpu_model ?? null).finally(() => this.#making.delete(vmmId));
    this.#making.set(vmmId, made);
    await made;
    // Unregistered while its process was being made.
    if (this.#store.isDead(vmmId) || this.#dying.has(vmmId)) {
      await this.#options.hypervisor.kill(vmmId);
      this.#refuseDead(vmmId);
    }
    if (this.#powerOffs !== powerOffs || (sledId !== null && this.#expunged.has(sledId))) {
      await this.#options.hypervisor.kill(vmmId);
      this.#recordKill(vmmId);
      return this.#writtenState(vmmId);
    }
    const state = this.#writtenState(vmmId);
    this.reporter.report(vmmId, state);
    return state;
  }

  /**
   * Ends a VMM and makes its id dead, whether it was known or not. Resolves when its process is gone. Throws a `DiskError`
   * when that can't be written down: its process is gone then all the same, and its id is made dead when that can be done.
   */
  async unregister(vmmId: string): Promise<SledVmmState | null> {
    this.#dying.add(vmmId);
    this.#disk.eventually(`that VMM ${vmmId} is dead`, () => this.#markDead(vmmId));
    await this.#making.get(vmmId)?.catch(() => {});
    if (this.#store.get(vmmId) !== undefined) {
      await this.#options.hypervisor.kill(vmmId);
      this.#recordKill(vmmId);
    }
    this.#markDead(vmmId);
    return this.#store.get(vmmId) === undefined ? null : this.#writtenState(vmmId);
  }

  /** Has a VMM do what the control plane commands. Throws an {@link AgentRefusal}, or a `DiskError`. */
  async command(vmmId: string, command: VmmCommand): Promise<SledVmmState> {
    this.#require(vmmId);
    await this.#making.get(vmmId);
    const vmm = this.#require(vmmId);
    switch (command.type) {
      case 'running':
        this.#refuseEnding(vmm);
        if (vmm.migrationId !== null && vmm.migrationIn?.state !== 'completed') {
          throw new AgentRefusal(409, 'MIGRATING_IN', `VMM ${vmmId} runs when its guest has arrived`);
        }
        if (vmm.lastCommand === 'nothing') {
          this.#refuseExpunged(this.#sledOf(vmm));
          this.#requireLease();
          this.#update(vmm, { lastCommand: 'running' });
          this.#options.hypervisor.run(vmmId);
        }
        return this.#writtenState(vmmId);
      case 'stopped': {
        const answer = await this.#options.hypervisor.stop(vmmId);
        const state = this.#writtenState(vmmId);
        if (answer === 'taken') return state;
        throw new AgentRefusal(
          409,
          'GUEST_LEFT',
          `the guest of VMM ${vmmId} has left for the destination of its migration`,
        );
      }
      case 'reboot':
        this.#refuseEnding(vmm);
        this.#requireLease();
        this.#options.hypervisor.reboot(vmmId);
        return this.#writtenState(vmmId);
      case 'migration_target':
        // The same once more, also when it is over.
        if (vmm.lastCommand === 'migration_target') return this.#writtenState(vmmId);
        this.#refuseEnding(vmm);
        this.#requireLease();
        if (vmm.refusedMigration || vmm.migrationId === null || vmm.lastCommand !== 'nothing') {
          this.#update(vmm, { refusedMigration: true });
          throw new AgentRefusal(409, 'NOT_A_TARGET', `VMM ${vmmId} takes no migration in`);
        }
        this.#update(vmm, { lastCommand: 'migration_target' });
        this.#options.hypervisor.migrateIn(vmmId, vmm.migrationId, command.value.src_vmm_addr);
        return this.#writtenState(vmmId);
    }
  }

  /** A refused migration stays refused, so that an earlier command for it can't land after its saga unwound. */
  refuseMigration(vmmId: string): void {
    const vmm = this.#store.get(vmmId);
    if (vmm !== undefined && vmm.lastCommand === 'nothing') this.#update(vmm, { refusedMigration: true });
  }

  /** A VMM's state as it is on disk, with how far its migration is where the hypervisor knows. */
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
    this.#store.abandon(vmmId);
    this.reporter.forget(vmmId);
    await this.#options.hypervisor.kill(vmmId);
  }

  /** Lets another agent have the data: this one has not begun. */
  leave(): void {
    void this.reporter.stop();
    this.#store.close();
  }

  /** Stops reporting; ends every VM, or lets go of them as {@link Hypervisor.detach} says. */
  async close(vms: 'end' | 'detach'): Promise<void> {
    await this.reporter.stop();
    await (vms === 'end' ? this.#options.hypervisor.close() : this.#options.hypervisor.detach());
    this.#disk.stop();
    this.#store.close();
  }

  async #make(record: VmmRecord, cpuModel: string | null): Promise<void> {
    const { vmmId } = record;
    try {
      const spec = { ...specOf(record), cpuModel };
      await this.#options.hypervisor.create(spec, (event) => this.#onVmEvent(vmmId, event));
    } catch (error) {
      this.#store.abandon(vmmId);
      if (asDiskError(error) !== null) throw error;
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

  /** Makes an id dead: on disk when this returns. Throws a `DiskError`. */
  #markDead(vmmId: string): void {
    this.#store.markDead(vmmId);
    this.#dying.delete(vmmId);
  }

  #refuseDead(vmmId: string): void {
    if (this.#dying.has(vmmId)) this.#markDead(vmmId);
    if (!this.#store.isDead(vmmId)) return;
    throw new AgentRefusal(409, VMM_UNREGISTERED, `VMM ${vmmId} was unregistered: its id stays dead`);
  }

  #refuseEnding(vmm: VmmRecord): void {
    const { state } = vmm.runtime;
    if (state === 'stopping' || state === 'stopped' || isTerminalVmmState(state)) {
      throw new AgentRefusal(410, 'VMM_TERMINATING', `VMM ${vmm.vmmId} is ${state}`);
    }
  }

  /** The one way of a hypervisor's events. Never throws: what can't be written waits. */
  #onVmEvent(vmmId: string, event: VmEvent): Unwritten {
    if (event.kind === 'state') return this.#record(vmmId, event.state, (vmm) => toState(vmm, event.state));
    const side = event.kind === 'migration-in' ? 'migrationIn' : 'migrationOut';
    return this.#record(vmmId, null, (vmm) =>
      isTerminalVmmState(vmm.runtime.state)
        ? vmm
        : { ...vmm, [side]: sideOf(vmm[side], event.migrationId, event.state) },
    );
  }

  /**
   * Writes down and reports what has happened to a VMM, after all that happened to it before: now, or as soon as it can be
   * written. `null`: it is on disk. Never throws.
   */
  #record(vmmId: string, state: UnwrittenChange['state'], change: Change): Unwritten {
    if (this.#store.get(vmmId) === undefined) return null;
    const changes = this.#unwritten.get(vmmId) ?? [];
    this.#unwritten.set(vmmId, changes);
    let last = changes.at(-1);
    // A guest that reboots again and again on a full disk must not fill the memory too.
    if (last !== undefined && PASSING.has(last.state) && PASSING.has(state)) last.change = change;
    else {
      last = { change, state, waiting: [] };
      changes.push(last);
    }
    const { waiting } = last;
    if (this.#disk.eventually(`VMM ${vmmId}`, () => this.#writeChanges(vmmId))) return null;
    return new Promise((resolve) => waiting.push(resolve));
  }

  /** Writes down what waits of a VMM, in its order, and reports each. Throws a `DiskError`; then the rest waits on. */
  #writeChanges(vmmId: string): void {
    const changes = this.#unwritten.get(vmmId) ?? [];
    for (let next = changes[0]; next !== undefined; next = changes[0]) {
      const before = this.#store.get(vmmId);
      const after = before === undefined ? undefined : next.change(before);
      if (after !== undefined && after !== before) {
        this.#store.save(after);
        this.reporter.report(vmmId, stateOf(after));
      }
      changes.shift();
      for (const written of next.waiting) written();
    }
    this.#unwritten.delete(vmmId);
  }

  /** A VMM's state, when nothing of it waits to be written. Throws a `DiskError`: then nobody may be told that it is done. */
  #writtenState(vmmId: string): SledVmmState {
    this.#writeChanges(vmmId);
    return stateOf(this.#require(vmmId));
  }

  /** Writes down what was commanded. Throws a `DiskError`: then nothing was. */
  #update(vmm: VmmRecord, change: Partial<Pick<VmmRecord, 'lastCommand' | 'refusedMigration'>>): void {
    this.#writeChanges(vmm.vmmId);
    this.#store.save({ ...this.#require(vmm.vmmId), ...change });
  }

  /** A terminal state is forgotten only when the control plane has dealt with its report and nothing of the VMM is left. */
  #onReportDelivered(vmmId: string, report: SledVmmState): void {
    if (!isTerminalVmmState(report.vmm_state.state)) return;
    this.#disk.eventually(`that VMM ${vmmId} is over`, async () => {
      this.#markDead(vmmId);
      await this.#options.hypervisor.kill(vmmId);
      this.#store.remove(vmmId);
    });
  }
}

/** A VMM in its next state. What is over stays as it is. */
function toState(vmm: VmmRecord, state: VmmRuntime['state']): VmmRecord {
  if (isTerminalVmmState(vmm.runtime.state)) return vmm;
  // A VMM that dies before its guest has arrived: its side of the migration failed.
  const arrivalOver = vmm.migrationIn !== null && isTerminalMigrationState(vmm.migrationIn.state);
  const { migrationId } = vmm;
  return {
    ...vmm,
    runtime: { state, gen: vmm.runtime.gen + 1, time_updated: now() },
    ...(isTerminalVmmState(state) && migrationId !== null && !arrivalOver
      ? { migrationIn: sideOf(vmm.migrationIn, migrationId, 'failed') }
      : {}),
  };
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
