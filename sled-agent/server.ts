import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { splitAddress, withPort } from '../wire/sled-protocol.ts';
import { SledAgent } from './agent.ts';
import { makeAgentApp } from './agent-app.ts';
import { AgentDescriber } from './agent-description.ts';
import { addAgentRoute, addTestRoutes, addVmmRoutes } from './agent-routes.ts';
import { requireOwnPlace } from './data-place.ts';
import { asDiskError, Disk, type DiskError, type FileSystem } from './disk.ts';
import { PlantedFaults } from './faults.ts';
import type { WitnessedHypervisor } from './hypervisor.ts';
import { InstallationKeeper } from './installation-keeper.ts';
import { readLease } from './lease-file.ts';
import { LeaseKeeper, leasePath } from './lease-keeper.ts';
import { NetworkTable } from './network-table.ts';
import { identifiedTransport, type PeerTransport, PLAIN_TRANSPORT } from './peer-transport.ts';
import { SimulatedHypervisor } from './simulated-hypervisor.ts';
import type { SledIdentity } from './sled-identity.ts';
import { makeTestFaults, type TestFaults } from './test-faults.ts';
import { holdsRecords } from './vmm-store.ts';

export interface SledAgentOptions {
  readonly name: string;
  /** `ip:port` to listen on; port 0 chooses a free one. */
  readonly listen: string;
  /** Where the control plane takes reports, for example `http://127.0.0.1:12220`. */
  readonly controlPlaneUrl: string;
  readonly threads: number;
  readonly memoryBytes: number;
  /** How long each transition of a simulated VM takes, in milliseconds; default 50. */
  readonly transitionMs?: number;
  /** The CPU models that simulated VMs are said to be given, the default first; by default they aren't told apart. */
  readonly cpuModels?: readonly string[] | undefined;
  /** How often it asks where instances live, in milliseconds; default 1000, 0 never. */
  readonly networkPollMs?: number;
  /** Appends when a guest began or ceased to execute to this file, a line of JSON each; nowhere when absent. */
  readonly guestLogFile?: string;
  /**
   * Makes what runs the VMs; simulated ones by default. `faults` are those planted on the agent; `agentAddress` is its
   * `ip:port`, known once it listens; `transport` is how guests are handed over to other sleds; all that it writes goes
   * through `disk`.
   */
  readonly makeHypervisor?: (
    faults: PlantedFaults,
    agentAddress: () => string,
    transport: PeerTransport,
    disk: Disk,
  ) => WitnessedHypervisor;
  /**
   * The identity that the sled has joined with: then the agent speaks only over TLS, and only the control plane commands
   * it. It is stopped with the agent.
   */
  readonly identity?: SledIdentity | undefined;
  /** A lease of its guests, which it powers off when it could not renew it; without, nothing powers them off. */
  readonly fencing?: FencingOptions | undefined;
  /** Where the agent keeps its store between runs; without it, what it knows is gone with the agent. */
  readonly dataDir?: string | undefined;
  /** The folder is another one at each start: nothing in it outlives the agent. */
  readonly isDataThrownAway?: boolean | undefined;
  /** An operator releases it from the installation whose orders it took: it takes those of the next one that commands it. */
  readonly releaseInstallation?: boolean | undefined;
  /** The data were moved here from another place, and the agent that had them is off; without that a copy is refused. */
  readonly movedData?: boolean | undefined;
  /** Serves the endpoints below `/test/`, by which faults are planted. */
  readonly testEndpoints?: boolean;
  /** Gets a message for people about each thing that went wrong; by default nobody does. */
  readonly onTrouble?: ((message: string) => void) | undefined;
  /** What the agent's data are kept on; this machine's by default. For tests. */
  readonly fileSystem?: FileSystem | undefined;
}

export interface FencingOptions {
  /** How long a lease lasts, in milliseconds. */
  readonly leaseMs: number;
  /** Asked for by the sled's name where it is not given. */
  readonly sledId?: string | undefined;
  /** The folder below which the VMs' processes work, where they are processes of their own. */
  readonly vmsFolder?: string | undefined;
  /** Gets what concerns the lease; by default what the agent's own `onTrouble` is. */
  readonly onTrouble?: (message: string) => void;
}

export interface SledAgentHandle {
  /** `ip:port`. */
  readonly address: string;
  readonly url: string;
  /** Plants faults; also over `/test/` where it is served. */
  readonly faults: TestFaults;
  readonly hypervisor: WitnessedHypervisor;
  /** What it knows of where instances live. */
  readonly network: Pick<NetworkTable, 'entries' | 'passes'>;
  /** Resolves when it knows what runs here and takes commands: with fencing, once it has a lease. */
  readonly ready: Promise<void>;
  /** Answers what it has begun to, then ends every VM. */
  stop(): Promise<void>;
  /** Ends without ending the VMs, where the hypervisor can: an agent that is started again with the same data finds them. */
  detach(): Promise<void>;
  /** Ends as a crash of the server would: connections are cut, nothing more is reported. */
  kill(): Promise<void>;
}

const DEFAULT_TRANSITION_MS = 50;
const DEFAULT_NETWORK_POLL_MS = 1_000;

/** How often a start is tried again for which the disk can't be used, in milliseconds. */
const START_AGAIN_MS = 500;

/**
 * Starts a sled agent, with simulated VMs unless `makeHypervisor` is given. It listens at once, and answers 503 until it
 * knows what runs here; then this resolves. With fencing it resolves at once, and answers 503 until it has a lease. An agent
 * whose data are there, on a disk that can't be used at the moment, waits for it and says so (503 or 507): guests of its may
 * run, and nobody else knows of them. Throws when it can't listen, or its data can't be used or made, or are
 * a copy.
 */
export async function startSledAgent(options: SledAgentOptions): Promise<SledAgentHandle> {
  const { identity, onTrouble = options.fencing?.onTrouble ?? (() => {}) } = options;
  const dataDir = options.dataDir ?? null;
  const disk = new Disk({ folder: dataDir, onTrouble, ...pickDefined('fileSystem', options.fileSystem) });
  const planted = new PlantedFaults();
  let address = options.listen;
  let describer: AgentDescriber | null = null;
  const transport: PeerTransport = {
    ...(identity === undefined ? PLAIN_TRANSPORT : identifiedTransport(identity)),
    agentId: () => describer?.keptAgentId ?? null,
  };
  const hypervisor =
    options.makeHypervisor?.(planted, () => address, transport, disk) ??
    new SimulatedHypervisor(
      options.transitionMs ?? DEFAULT_TRANSITION_MS,
      planted,
      options.guestLogFile,
      transport,
      options.cpuModels,
      disk,
      onTrouble,
    );
  const giveUpReserve = processDescriptors.hold(onTrouble);
  let lease: LeaseKeeper | null = null;
  const ownSledId = identity?.sledId ?? options.fencing?.sledId;
  const { agent, leaseFolder, keeper, installations } = await whenDiskAllows(options, async () => {
    const opened = await SledAgent.open({
      ...options,
      hypervisor,
      dataDir,
      disk,
      sledId: ownSledId,
      agentId: () => describer?.agentId ?? null,
      onTrouble,
      leaseHeld: () => lease === null || lease.held,
    });
    try {
      if (dataDir !== null) requireOwnPlace(dataDir, disk, options.movedData);
      const installations = new InstallationKeeper({ dataDir, disk, release: options.releaseInstallation, onTrouble });
      if (options.fencing === undefined) {
        refuseDataWithLease(options.dataDir);
        return { agent: opened, installations, leaseFolder: null, keeper: null };
      }
      const folder = openLeaseFolder(options.dataDir, disk);
      return {
        agent: opened,
        installations,
        leaseFolder: folder,
        keeper: makeLeaseKeeper(options, options.fencing, folder.path, opened, disk, () => describer?.agentId ?? null),
      };
    } catch (error) {
      opened.leave();
      throw error;
    }
  }).catch((error: unknown) => {
    giveUpReserve();
    disk.stop();
    throw error;
  });
  lease = keeper;
  const app = await makeAgentApp(agent, identity, onTrouble);
  const faults = makeTestFaults(agent, hypervisor, planted);
  describer = new AgentDescriber(
    dataDir,
    () => ({ trouble: agent.trouble, cpuModels: hypervisor.cpuModels }),
    disk,
    options.isDataThrownAway,
  );
  addAgentRoute(app, describer);
  addVmmRoutes(app, agent, planted, installations);
  if (options.testEndpoints) addTestRoutes(app, faults);
  const network = new NetworkTable(
    options.controlPlaneUrl,
    options.networkPollMs ?? DEFAULT_NETWORK_POLL_MS,
    identity?.connectToControlPlane(1),
    {
      sledIds: () => agent.sledIds(),
      onExpunged(sledId) {
        const expunged = sledId ?? ownSledId;
        if (expunged !== undefined) agent.hearExpunged(expunged);
      },
    },
  );
  const end = async (vms: 'end' | 'detach') => {
    await network.stop();
    await agent.close(vms);
    await keeper?.stop(vms === 'end' || options.fencing?.vmsFolder === undefined);
    await leaseFolder?.close();
    app.server.closeAllConnections();
    await app.close();
    await identity?.stop();
    giveUpReserve();
  };
  let ready: Promise<void> = Promise.resolve();
  try {
    await app.listen(splitAddress(options.listen));
    const bound = app.server.address();
    address = withPort(options.listen, typeof bound === 'object' && bound !== null ? bound.port : 0);
    if (keeper === null) await agent.recover();
    else {
      // Nothing is taken up on an earlier agent's lease: when that lapses, the watchdog still powers its guests off.
      ready = keeper.firstHeld.then(async () => {
        await agent.recover();
        if (!keeper.held) await agent.powerOff();
      });
      keeper.start();
    }
  } catch (error) {
    await end('detach');
    throw error;
  }
  return {
    address,
    url: `${identity === undefined ? 'http' : 'https'}://${address}`,
    faults,
    hypervisor,
    network,
    ready,
    stop: () => end('end'),
    detach: () => end('detach'),
    kill: () => end('end'),
  };
}

function pickDefined<Key extends string, Value>(key: Key, value: Value | undefined): { [K in Key]?: Value } {
  return value === undefined ? {} : ({ [key]: value } as { [K in Key]?: Value });
}

/**
 * Opens what an agent needs of its disk. Where that can't be used at the moment, and an agent has worked with it before, it
 * listens, refuses every call with the reason, and tries again until it can. Throws what can't pass, and what it is at once
 * where nothing runs: with a sentence for whoever starts it.
 */
async function whenDiskAllows<Opened>(options: SledAgentOptions, open: () => Promise<Opened>): Promise<Opened> {
  let waiting: { trouble: DiskError; close: () => Promise<void> } | null = null;
  try {
    for (;;) {
      try {
        return await open();
      } catch (error) {
        const trouble = asDiskError(error);
        const { dataDir } = options;
        if (trouble === null || !trouble.mayPass || dataDir === undefined) throw error;
        if (!holdsRecords(dataDir))
          throw new Error(`no sled agent can work with ${dataDir} yet: ${trouble.message}`, { cause: error });
        if (waiting === null) {
          waiting = await refuseAll(options, trouble);
          options.onTrouble?.(`the agent waits until it can use its data: ${trouble.message}`);
        } else waiting.trouble = trouble;
        await pause(START_AGAIN_MS);
      }
    }
  } finally {
    await waiting?.close();
  }
}

/** Answers every call with what keeps the agent from starting. Throws when it can't listen. */
async function refuseAll(options: SledAgentOptions, trouble: DiskError) {
  const waiting = {
    trouble,
    close: async () => {
      app.server.closeAllConnections();
      await app.close();
    },
  };
  const app = await makeAgentApp(
    {
      requireReady() {
        throw waiting.trouble;
      },
    },
    options.identity,
    options.onTrouble,
  );
  await app.listen(splitAddress(options.listen));
  return waiting;
}

/** Throws when the data are of a sled with fencing. */
function refuseDataWithLease(dataDir: string | undefined): void {
  if (dataDir === undefined || readLease(leasePath(dataDir)) === null) return;
  throw new Error(
    `${dataDir} is of a sled with fencing: the control plane counts on its lease. Start it with fencing; to be without, expunge the sled and add it anew, with an empty directory`,
  );
}

/** Where the lease is written down: the agent's data, or, without any, a folder that `close` removes. Throws a `DiskError`. */
function openLeaseFolder(dataDir: string | undefined, disk: Disk): { path: string; close: () => Promise<void> } {
  if (dataDir !== undefined) return { path: dataDir, close: async () => {} };
  const path = disk.makeTemporaryFolder(join(tmpdir(), 'mooring-lease-'));
  return { path, close: () => disk.removeTree(path) };
}

/** The keeper of the agent's lease, not renewing yet. Throws as {@link LeaseKeeper}. */
function makeLeaseKeeper(
  options: SledAgentOptions,
  fencing: FencingOptions,
  directory: string,
  agent: SledAgent,
  disk: Disk,
  agentId: () => string | null,
): LeaseKeeper {
  const { controlPlaneUrl, name: sledName, guestLogFile, identity } = options;
  const { leaseMs, sledId, vmsFolder = null, onTrouble = options.onTrouble ?? (() => {}) } = fencing;
  return new LeaseKeeper({
    ...{ controlPlaneUrl, sledName, sledId, leaseMs, directory, vmsFolder, guestLogFile, onTrouble, disk, agentId },
    connections: identity?.connectToControlPlane(2),
    living: () => agent.living(),
    powerOff: () => agent.powerOff(),
    onExpunged: (expungedId) => agent.endExpunged(expungedId),
  });
}
