/**
 * VMs that only count. All else is real: each has a listener at its own address, and a live migration is a hand-over
 * between two of them over TCP, in lines of JSON:
 *
 *   destination → source   {fetch: migration id, instance: id}
 *   source → destination   {begin}                      both sides are in progress
 *   source → destination   {memory: counter}            the source has paused its guest
 *   destination → source   {complete}                   the destination has everything
 *   source → destination   {yours}                      the commit point: the source never resumes after it
 *
 * Before `complete` a broken connection leaves the guest with the source. After it, a destination that has not received
 * `yours` asks again; a source that refuses connections is dead, and a dead source runs nothing.
 */

import type { Server, Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { splitAddress } from '../wire/sled-protocol.ts';
import { Disk } from './disk.ts';
import type { PlantedFaults } from './faults.ts';
import { guarded } from './guarded.ts';
import { GuestLog, guestLogNow } from './guest-log.ts';
import {
  type GuestLogEntry,
  requireCpuModel,
  type StopAnswer,
  type StoredVm,
  type VmListener,
  type VmSpec,
  type WitnessedHypervisor,
} from './hypervisor.ts';
import { type PeerTransport, PLAIN_TRANSPORT } from './peer-transport.ts';

const message = z.union([
  z.object({ fetch: z.string(), instance: z.string() }),
  z.object({ begin: z.literal(true) }),
  z.object({ memory: z.number() }),
  z.object({ complete: z.literal(true) }),
  z.object({ yours: z.literal(true) }),
  z.object({ settle: z.string() }),
  z.object({ error: z.string() }),
]);
type Message = z.infer<typeof message>;

interface Guest {
  /** How far it had counted when it last began to execute here. */
  count: number;
  /** When it began, by the monotonic clock; `null` while it is paused. */
  since: number | null;
}

interface SimulatedVm {
  readonly spec: VmSpec;
  readonly emit: VmListener;
  readonly server: Server;
  readonly sockets: Set<Socket>;
  readonly timers: Set<NodeJS.Timeout>;
  guest: Guest | null;
  state: 'made' | 'starting' | 'running' | 'rebooting' | 'migrating-out' | 'migrating-in' | 'stopping' | 'ended';
  /** Migrations whose guest this VM has let go, on disk. */
  readonly given: Set<string>;
  /** The migration whose guest it is letting go: decided, and not on disk yet. */
  giving: string | null;
  outgoing: { migrationId: string; socket: Socket } | null;
  stopOnArrival: boolean;
}

const COUNTS_PER_SECOND = 50;
const SETTLE_EVERY_MS = 200;

export class SimulatedHypervisor implements WitnessedHypervisor {
  readonly cpuModels: readonly string[] | null;
  readonly #vms = new Map<string, SimulatedVm>();
  readonly #transitionMs: number;
  readonly #faults: PlantedFaults;
  readonly #log: GuestLog;
  readonly #transport: PeerTransport;
  readonly #onTrouble: (message: string) => void;

  /**
   * `transitionMs`: how long each transition takes, in milliseconds. `guestLogFile`: the guest log is also appended to
   * this file, a line of JSON an entry, so that it outlives this process. `transport`: how guests are handed over.
   * `cpuModels`: those that it says it offers, and takes guests of. `disk`: how the guest log is written.
   */
  constructor(
    transitionMs: number,
    faults: PlantedFaults,
    guestLogFile?: string,
    transport: PeerTransport = PLAIN_TRANSPORT,
    cpuModels: readonly string[] | null = null,
    disk: Disk = new Disk(),
    onTrouble: (message: string) => void = () => {},
  ) {
    this.cpuModels = cpuModels;
    this.#transitionMs = transitionMs;
    this.#faults = faults;
    this.#log = new GuestLog(disk, guestLogFile);
    this.#transport = transport;
    this.#onTrouble = onTrouble;
  }

  get guestLog(): readonly GuestLogEntry[] {
    return this.#log.entries;
  }

  async create(spec: VmSpec, emit: VmListener): Promise<void> {
    if (this.#vms.has(spec.vmmId)) return;
    requireCpuModel(this.cpuModels, spec.cpuModel);
    const server = this.#transport.serve((socket) => this.#serve(vm, socket));
    const vm: SimulatedVm = {
      spec,
      emit,
      server,
      sockets: new Set(),
      timers: new Set(),
      guest: null,
      state: 'made',
      given: new Set(),
      giving: null,
      outgoing: null,
      stopOnArrival: false,
    };
    const { host, port } = splitAddress(spec.address);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host, resolve);
    });
    // A connection that can't be taken for want of a file descriptor is no end of the agent.
    server.on('error', (error) => this.#onTrouble(`VMM ${spec.vmmId}: ${error.message}`));
    this.#vms.set(spec.vmmId, vm);
  }

  /** Simulated VMs die with the process of their agent. What their guests were doing then, nobody can know. */
  async recover(stored: readonly StoredVm[]): Promise<void> {
    this.#log.closeEarlier('its sled agent ended');
    for (const { listener } of stored) listener({ kind: 'state', state: 'failed' });
  }

  run(vmmId: string): void {
    const vm = this.#vms.get(vmmId);
    if (vm?.state !== 'made') return;
    vm.state = 'starting';
    this.#after(vm, () => {
      if (vm.state !== 'starting') return;
      vm.guest = { count: 0, since: null };
      this.#resume(vm, 'started');
      vm.state = 'running';
      vm.emit({ kind: 'state', state: 'running' });
    });
  }

  stop(vmmId: string): StopAnswer {
    const vm = this.#vms.get(vmmId);
    if (vm === undefined || vm.state === 'stopping' || vm.state === 'ended') {
      return vm !== undefined && (vm.given.size > 0 || vm.giving !== null) ? 'left' : 'taken';
    }
    if (vm.state === 'migrating-in') {
      vm.stopOnArrival = true;
      return 'taken';
    }
    if (vm.state === 'migrating-out') this.#keepGuest(vm, 'the user asked for stop');
    this.#shutDown(vm, 'stopped');
    return 'taken';
  }

  reboot(vmmId: string): void {
    const vm = this.#vms.get(vmmId);
    if (vm?.state !== 'running') return;
    this.#pause(vm, 'reboot');
    vm.state = 'rebooting';
    vm.emit({ kind: 'state', state: 'rebooting' });
    this.#after(vm, () => {
      if (vm.state !== 'rebooting') return;
      vm.guest = { count: 0, since: null };
      this.#resume(vm, 'rebooted');
      vm.state = 'running';
      vm.emit({ kind: 'state', state: 'running' });
    });
  }

  migrateIn(vmmId: string, migrationId: string, sourceAddress: string): void {
    const vm = this.#vms.get(vmmId);
    if (vm?.state !== 'made') return;
    vm.state = 'migrating-in';
    const failure = this.#faults.takeMigrationFailure('target', vm.spec.name);
    if (failure === 'before') {
      this.#failIncoming(vm, migrationId);
      return;
    }
    const socket = this.#dial(vm, sourceAddress, { fetch: migrationId, instance: vm.spec.instanceId });
    let memory: number | null = null;
    let complete = false;
    this.#listen(socket, (received) => {
      if ('begin' in received) vm.emit({ kind: 'migration-in', migrationId, state: 'in_progress' });
      if ('memory' in received) {
        if (failure === 'middle') {
          socket.destroy();
          return;
        }
        memory = received.memory;
        complete = true;
        send(socket, { complete: true });
      }
      if ('yours' in received && memory !== null) this.#arrive(vm, migrationId, memory);
    });
    socket.once('close', () => {
      if (vm.state !== 'migrating-in') return;
      if (complete && memory !== null) this.#settle(vm, migrationId, sourceAddress, memory);
      else this.#failIncoming(vm, migrationId);
    });
  }

  progress(): null {
    return null;
  }

  async readConsole(): Promise<null> {
    return null;
  }

  async kill(vmmId: string): Promise<void> {
    const vm = this.#vms.get(vmmId);
    if (vm === undefined) return;
    this.#vms.delete(vmmId);
    this.#pause(vm, 'killed');
    // Its connections break as of anybody who dies: that must bring no guest back, as it does where one is only left behind.
    vm.state = 'ended';
    vm.outgoing = null;
    this.#release(vm);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#vms.keys()].map((vmmId) => this.kill(vmmId)));
    this.#log.close();
  }

  /** They can't live without the agent. */
  detach(): Promise<void> {
    return this.close();
  }

  /** Test only: the guest powers itself off. */
  halt(vmmId: string): void {
    const vm = this.#vms.get(vmmId);
    if (vm?.state === 'running') this.#shutDown(vm, 'the guest halted');
  }

  /** Test only: the VM's process dies. */
  crash(vmmId: string): void {
    const vm = this.#vms.get(vmmId);
    if (vm === undefined || vm.state === 'ended') return;
    const knowsGuestStayed = vm.outgoing;
    const wasIncoming = vm.state === 'migrating-in';
    this.#pause(vm, 'crashed');
    vm.state = 'ended';
    // A process that dies can't report whether its guest left; the destination can.
    if (knowsGuestStayed !== null || wasIncoming) vm.outgoing = null;
    this.#release(vm);
    vm.emit({ kind: 'state', state: 'failed' });
  }

  /** How far a guest has counted; `null` when there is none here. */
  count(vmmId: string): number | null {
    const guest = this.#vms.get(vmmId)?.guest;
    return guest == null ? null : counted(guest);
  }

  #serve(vm: SimulatedVm, socket: Socket): void {
    this.#track(vm, socket);
    this.#listen(socket, (received) => {
      if ('settle' in received) {
        // Neither answer is true before it is on disk: it is asked again.
        if (vm.giving === received.settle) socket.destroy();
        else send(socket, vm.given.has(received.settle) ? { yours: true } : { error: 'the guest did not leave' });
      }
      if ('fetch' in received) {
        // An address is used again: a late call must not get another instance's guest.
        if (received.instance === vm.spec.instanceId) void this.#giveToDestination(vm, received.fetch, socket);
        else socket.destroy();
      }
      if ('complete' in received && vm.outgoing?.socket === socket) {
        const { migrationId } = vm.outgoing;
        vm.outgoing = null;
        vm.giving = migrationId;
        vm.guest = null;
        vm.state = 'stopping';
        void this.#letGo(vm, migrationId, socket);
      }
    });
    socket.once('close', () => {
      if (vm.outgoing?.socket === socket) this.#keepGuest(vm, 'the connection to the destination broke');
    });
  }

  /** The commit point: that the guest has left is on disk before the destination gets to know it. */
  async #letGo(vm: SimulatedVm, migrationId: string, socket: Socket): Promise<void> {
    await vm.emit({ kind: 'migration-out', migrationId, state: 'completed' });
    vm.given.add(migrationId);
    vm.giving = null;
    send(socket, { yours: true });
    if (this.#vms.get(vm.spec.vmmId) === vm) this.#after(vm, () => this.#end(vm));
  }

  async #giveToDestination(vm: SimulatedVm, migrationId: string, socket: Socket): Promise<void> {
    const { isDestination } = this.#transport;
    if (isDestination !== null && !(await isDestination(socket, vm.spec.vmmId, migrationId))) {
      send(socket, { error: 'the control plane knows of no such migration to this sled' });
      socket.end();
      return;
    }
    if (!socket.destroyed) this.#give(vm, migrationId, socket);
  }

  #give(vm: SimulatedVm, migrationId: string, socket: Socket): void {
    if (vm.state !== 'running') {
      send(socket, { error: `the source is ${vm.state}` });
      socket.end();
      return;
    }
    vm.state = 'migrating-out';
    vm.outgoing = { migrationId, socket };
    vm.emit({ kind: 'state', state: 'migrating' });
    if (vm.emit({ kind: 'migration-out', migrationId, state: 'in_progress' }) !== null) {
      // A guest must not stand still, half-way, for want of room to write down where it is.
      this.#keepGuest(vm, 'its migration could not be written down');
      return;
    }
    if (this.#faults.takeMigrationFailure('source', vm.spec.name) !== null) {
      socket.destroy();
      return;
    }
    send(socket, { begin: true });
    this.#after(vm, () => {
      if (vm.outgoing?.socket !== socket || vm.guest === null) return;
      this.#pause(vm, `migrating out`);
      send(socket, { memory: vm.guest.count });
    });
  }

  /** The source knows that its guest did not leave: it goes on. */
  #keepGuest(vm: SimulatedVm, reason: string): void {
    const { outgoing } = vm;
    if (outgoing === null) return;
    vm.outgoing = null;
    outgoing.socket.destroy();
    this.#resume(vm, reason);
    vm.state = 'running';
    vm.emit({ kind: 'migration-out', migrationId: outgoing.migrationId, state: 'failed' });
    vm.emit({ kind: 'state', state: 'running' });
  }

  #arrive(vm: SimulatedVm, migrationId: string, memory: number): void {
    if (vm.state !== 'migrating-in') return;
    vm.guest = { count: memory, since: null };
    this.#resume(vm, 'migrated in');
    vm.state = 'running';
    vm.emit({ kind: 'state', state: 'running' });
    vm.emit({ kind: 'migration-in', migrationId, state: 'completed' });
    if (vm.stopOnArrival) this.#shutDown(vm, 'stopped on arrival');
  }

  /** Everything is here, but not the source's message that it has let go: it is asked. */
  #settle(vm: SimulatedVm, migrationId: string, sourceAddress: string, memory: number): void {
    if (vm.state !== 'migrating-in') return;
    const socket = this.#dial(vm, sourceAddress, { settle: migrationId });
    let answered = false;
    this.#listen(socket, (received) => {
      answered = true;
      if ('yours' in received) this.#arrive(vm, migrationId, memory);
      if ('error' in received) this.#failIncoming(vm, migrationId);
      socket.end();
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ECONNREFUSED') return;
      answered = true;
      this.#arrive(vm, migrationId, memory);
    });
    socket.once('close', () => {
      if (!answered) this.#after(vm, () => this.#settle(vm, migrationId, sourceAddress, memory), SETTLE_EVERY_MS);
    });
  }

  #failIncoming(vm: SimulatedVm, migrationId: string): void {
    if (vm.state !== 'migrating-in') return;
    vm.state = 'ended';
    vm.emit({ kind: 'migration-in', migrationId, state: 'failed' });
    this.#release(vm);
    vm.emit({ kind: 'state', state: 'failed' });
  }

  #shutDown(vm: SimulatedVm, reason: string): void {
    this.#pause(vm, reason);
    vm.state = 'stopping';
    vm.emit({ kind: 'state', state: 'stopping' });
    this.#after(vm, () => {
      vm.emit({ kind: 'state', state: 'stopped' });
      this.#end(vm);
    });
  }

  #end(vm: SimulatedVm): void {
    vm.state = 'ended';
    vm.emit({ kind: 'state', state: 'destroyed' });
    // Its listener stays until the agent kills it: a destination may still ask whether the guest left.
  }

  #pause(vm: SimulatedVm, reason: string): void {
    if (vm.guest === null || vm.guest.since === null) return;
    vm.guest = { count: counted(vm.guest), since: null };
    this.#witness(vm, 'ceased', reason);
  }

  #resume(vm: SimulatedVm, reason: string): void {
    if (vm.guest === null || vm.guest.since !== null || vm.state === 'ended') return;
    vm.guest = { count: vm.guest.count, since: performance.now() };
    this.#witness(vm, 'began', reason);
  }

  #witness(vm: SimulatedVm, event: GuestLogEntry['event'], reason: string): void {
    const { instanceId, vmmId } = vm.spec;
    const entry = guestLogNow({ instance_id: instanceId, vmm_id: vmmId, event, reason });
    this.#log.add(entry);
  }

  #after(vm: SimulatedVm, act: () => void, ms = this.#transitionMs): void {
    if (this.#vms.get(vm.spec.vmmId) !== vm) return;
    const timer = setTimeout(() => {
      vm.timers.delete(timer);
      guarded(this.#onTrouble, act);
    }, ms);
    vm.timers.add(timer);
  }

  #release(vm: SimulatedVm): void {
    for (const timer of vm.timers) clearTimeout(timer);
    vm.timers.clear();
    vm.server.close();
    for (const socket of vm.sockets) socket.destroy();
  }

  #dial(vm: SimulatedVm, address: string, firstMessage: Message): Socket {
    const socket = this.#transport.dial(address, () => send(socket, firstMessage));
    this.#track(vm, socket);
    return socket;
  }

  #track(vm: SimulatedVm, socket: Socket): void {
    vm.sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => vm.sockets.delete(socket));
  }

  #listen(socket: Socket, onMessage: (received: Message) => void): void {
    const lines = createInterface({ input: socket });
    // It passes its input's errors on: without a listener a refused connection would end the whole agent.
    lines.on('error', () => {});
    lines.on('line', (line) => {
      try {
        onMessage(message.parse(JSON.parse(line)));
      } catch {
        socket.destroy();
      }
    });
  }
}

function counted(guest: Guest): number {
  return guest.since === null
    ? guest.count
    : guest.count + ((performance.now() - guest.since) / 1000) * COUNTS_PER_SECOND;
}

function send(socket: Socket, sent: Message): void {
  if (!socket.destroyed) socket.write(`${JSON.stringify(sent)}\n`);
}
