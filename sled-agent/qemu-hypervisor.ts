/** Runs VMs as QEMU processes, one each, in folders of their own below the agent's data. */
import { readdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { MigrationProgress } from '../wire/sled-protocol.ts';
import { asDiskError, Disk } from './disk.ts';
import type { PlantedFaults } from './faults.ts';
import { GuestLog, guestLogNow } from './guest-log.ts';
import {
  type ConsolePiece,
  type GuestLogEntry,
  requireCpuModel,
  type StopAnswer,
  type StoredVm,
  UnfitGuest,
  type VmListener,
  type VmSpec,
  type WitnessedHypervisor,
} from './hypervisor.ts';
import { type PeerTransport, PLAIN_TRANSPORT } from './peer-transport.ts';
import type { GuestImage } from './qemu/guest-image.ts';
import { SILENCE_MS } from './qemu/hand-over.ts';
import { type Accelerator, endProcess, findProcessesBelow, type QemuProgram } from './qemu/qemu-program.ts';
import { QemuVm } from './qemu/qemu-vm.ts';
import type { QemuVmContext } from './qemu/vm-context.ts';

export interface QemuHypervisorOptions {
  readonly program: QemuProgram;
  readonly accelerator: Accelerator;
  /** The CPU models that guests can be given, the default first; absent: QEMU's own choice, of which nothing is told. */
  readonly cpuModels?: readonly string[] | undefined;
  readonly image: GuestImage;
  /** Where the VMs' folders are; made when it isn't there. */
  readonly dataDir: string;
  readonly faults: PlantedFaults;
  readonly agentAddress: () => string;
  /** How guests are handed over to other sleds; plain TCP by default. */
  readonly transport?: PeerTransport;
  /** The QEMU processes end when this process does, however it ends; else they live on, and are found again. */
  readonly endWithAgent: boolean;
  /** How long a guest may take to power off before its process is ended, in milliseconds; default 30000. */
  readonly stopTimeoutMs?: number;
  /** How long a silent connection between two agents counts as alive, in milliseconds. */
  readonly silenceMs?: number;
  /** How long a migration may make no progress before its source cancels it, in milliseconds; default 30000. */
  readonly stallMs?: number;
  /** How fast a migration out may be, in bytes per second; without limit when absent. */
  readonly migrationBandwidth?: number | undefined;
  /** How guests migrate; by default stopped under TCG, which corrupts a running one, and running under KVM. */
  readonly migrationMode?: QemuVmContext['migrationMode'];
  readonly onTrouble?: (message: string) => void;
  /** The guest log is also appended to this file, a line of JSON an entry, so that it outlives this process. */
  readonly guestLogFile?: string | undefined;
  /** How all of it is written; the agent's own. */
  readonly disk?: Disk;
}

/** With less memory Debian's kernel never boots, and prints nothing. */
const LEAST_MEMORY_MIB = 96;
const MIB = 1024 ** 2;
const STOP_TIMEOUT_MS = 30_000;
const STALL_MS = 30_000;
/** How often it is tried again to see which processes there are, in milliseconds. */
const LOOK_AGAIN_MS = 500;

export class QemuHypervisor implements WitnessedHypervisor {
  readonly cpuModels: readonly string[] | null;
  readonly #log: GuestLog;
  readonly #disk: Disk;
  readonly #options: QemuHypervisorOptions;
  readonly #folder: string;
  readonly #context: QemuVmContext;
  readonly #vms = new Map<string, QemuVm>();

  /** The folder (a real path) below which the VMs' processes work. Throws a `DiskError` when it can't be made. */
  static vmsFolder(dataDir: string, disk: Disk = new Disk()): string {
    const folder = join(dataDir, 'vms');
    disk.makeFolder(folder);
    return realpathSync(folder);
  }

  /** Throws when the folder of the VMs can't be made. */
  constructor(options: QemuHypervisorOptions) {
    const disk = options.disk ?? new Disk();
    this.#options = options;
    this.cpuModels = options.cpuModels ?? null;
    this.#disk = disk;
    this.#log = new GuestLog(disk, options.guestLogFile);
    this.#folder = QemuHypervisor.vmsFolder(options.dataDir, disk);
    this.#context = {
      program: options.program,
      image: options.image,
      faults: options.faults,
      disk,
      migrationMode: options.migrationMode ?? (options.accelerator === 'kvm' ? 'pre_copy' : 'stop_and_copy'),
      agentAddress: options.agentAddress,
      transport: options.transport ?? PLAIN_TRANSPORT,
      stopTimeoutMs: options.stopTimeoutMs ?? STOP_TIMEOUT_MS,
      silenceMs: options.silenceMs ?? SILENCE_MS,
      migrationBandwidth: options.migrationBandwidth ?? 0,
      stallMs: options.stallMs ?? STALL_MS,
      endWithAgent: options.endWithAgent,
      onTrouble: options.onTrouble ?? (() => {}),
      log: (entry) => this.#log.add(guestLogNow(entry)),
    };
  }

  get guestLog(): readonly GuestLogEntry[] {
    return this.#log.entries;
  }

  async create(spec: VmSpec, listener: VmListener): Promise<void> {
    if (this.#vms.has(spec.vmmId)) return;
    const memoryMib = Math.ceil(spec.memoryBytes / MIB);
    if (memoryMib < LEAST_MEMORY_MIB)
      throw new UnfitGuest(`a guest needs at least ${LEAST_MEMORY_MIB} MiB of memory here, not ${memoryMib}`);
    requireCpuModel(this.cpuModels, spec.cpuModel);
    const { accelerator, program } = this.#options;
    const cpuModel = this.cpuModels === null ? null : (spec.cpuModel ?? this.cpuModels[0] ?? null);
    const shape = { machine: program.machine, accelerator, memoryMib, ncpus: spec.ncpus, cpuModel };
    const folder = join(this.#folder, spec.vmmId);
    await this.#disk.clear(folder);
    this.#disk.makeFolder(folder);
    const vm = new QemuVm(spec, folder, shape, this.#context, listener);
    this.#vms.set(spec.vmmId, vm);
    try {
      await vm.start();
    } catch (error) {
      this.#vms.delete(spec.vmmId);
      await vm.kill();
      throw error;
    }
  }

  async recover(stored: readonly StoredVm[]): Promise<void> {
    const processes = await this.#untilRead(() => findProcessesBelow(this.#folder));
    const known = new Set(stored.map(({ spec }) => spec.vmmId));
    for (const [vmmId, pid] of processes) if (!known.has(vmmId)) await endProcess(pid, join(this.#folder, vmmId));
    for (const vmmId of await this.#untilRead(() => readdirSync(this.#folder)))
      if (!known.has(vmmId)) await this.#disk.removeTreeSoon(join(this.#folder, vmmId));
    await Promise.all(stored.map((vm) => this.#takeUp(vm, processes.get(vm.spec.vmmId))));
  }

  async #takeUp(stored: StoredVm, pid: number | undefined): Promise<void> {
    const { spec, listener, state } = stored;
    const folder = join(this.#folder, spec.vmmId);
    if (pid === undefined) {
      // Off already, or its guest had left: the process was ended in order.
      const inOrder = state === 'stopped' || stored.migrationOut?.state === 'completed';
      await this.#disk.removeTreeSoon(folder);
      listener({ kind: 'state', state: inOrder ? 'destroyed' : 'failed' });
      return;
    }
    let vm: QemuVm;
    try {
      vm = await this.#untilRead(() => new QemuVm(spec, folder, null, this.#context, listener));
    } catch (error) {
      // The agent ended while the process was being made: no command has come for it.
      this.#context.onTrouble(`VMM ${spec.vmmId} is ended: ${error instanceof Error ? error.message : error}`);
      await this.kill(spec.vmmId);
      listener({ kind: 'state', state: 'failed' });
      return;
    }
    this.#vms.set(spec.vmmId, vm);
    await vm.adopt(pid, stored);
  }

  run(vmmId: string): void {
    this.#vms.get(vmmId)?.run();
  }

  stop(vmmId: string): StopAnswer | Promise<StopAnswer> {
    return this.#vms.get(vmmId)?.stop() ?? 'taken';
  }

  reboot(vmmId: string): void {
    this.#vms.get(vmmId)?.reboot();
  }

  migrateIn(vmmId: string, migrationId: string, sourceAddress: string): void {
    this.#vms.get(vmmId)?.migrateIn(migrationId, sourceAddress);
  }

  progress(vmmId: string): MigrationProgress | null {
    return this.#vms.get(vmmId)?.progress() ?? null;
  }

  async readConsole(vmmId: string, fromOffset: number, maxBytes: number): Promise<ConsolePiece | null> {
    return (await this.#vms.get(vmmId)?.readConsole(fromOffset, maxBytes)) ?? null;
  }

  async kill(vmmId: string): Promise<void> {
    const vm = this.#vms.get(vmmId);
    if (vm !== undefined) {
      await vm.kill();
      if (this.#vms.get(vmmId) === vm) this.#vms.delete(vmmId);
      return;
    }
    const folder = join(this.#folder, vmmId);
    const pid = findProcessesBelow(this.#folder).get(vmmId);
    if (pid !== undefined) await endProcess(pid, folder);
    await this.#disk.removeTreeSoon(folder);
  }

  /**
   * Reads what must be known before the agent can answer for its guests: where the disk can't be read, or there is no file
   * descriptor, it tries until there is. Throws what `read` throws besides.
   */
  async #untilRead<Read>(read: () => Read): Promise<Read> {
    let said: string | null = null;
    for (;;) {
      try {
        return read();
      } catch (error) {
        const trouble = asDiskError(error);
        if (trouble === null) throw error;
        if (said !== trouble.message) this.#context.onTrouble(`what runs here can't be seen: ${trouble.message}`);
        said = trouble.message;
        await pause(LOOK_AGAIN_MS);
      }
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#vms.keys()].map((vmmId) => this.kill(vmmId)));
    this.#log.close();
  }

  async detach(): Promise<void> {
    for (const vm of this.#vms.values()) vm.detach();
    this.#vms.clear();
  }

  halt(vmmId: string): void {
    this.#vms.get(vmmId)?.halt();
  }

  crash(vmmId: string): void {
    this.#vms.get(vmmId)?.crash();
  }

  count(vmmId: string): number | null {
    return this.#vms.get(vmmId)?.count() ?? null;
  }
}
