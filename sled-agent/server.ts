import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { splitAddress, withPort } from '../wire/sled-protocol.ts';
import { SledAgent } from './agent.ts';
import { makeAgentApp } from './agent-app.ts';
import { AgentDescriber } from './agent-description.ts';
import { addAgentRoute, addTestRoutes, addVmmRoutes } from './agent-routes.ts';
import { PlantedFaults } from './faults.ts';
import type { WitnessedHypervisor } from './hypervisor.ts';
import { LeaseKeeper, leasePath } from './lease-keeper.ts';
import { NetworkTable } from './network-table.ts';
import { identifiedTransport, type PeerTransport, PLAIN_TRANSPORT } from './peer-transport.ts';
import { SimulatedHypervisor } from './simulated-hypervisor.ts';
import type { SledIdentity } from './sled-identity.ts';
import { makeTestFaults, type TestFaults } from './test-faults.ts';

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
   * `ip:port`, known once it listens; `transport` is how guests are handed over to other sleds.
   */
  readonly makeHypervisor?: (
    faults: PlantedFaults,
    agentAddress: () => string,
    transport: PeerTransport,
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
  /** Serves the endpoints below `/test/`, by which faults are planted. */
  readonly testEndpoints?: boolean;
}

export interface FencingOptions {
  /** How long a lease lasts, in milliseconds. */
  readonly leaseMs: number;
  /** Asked for by the sled's name where it is not given. */
  readonly sledId?: string | undefined;
  /** The folder below which the VMs' processes work, where they are processes of their own. */
  readonly vmsFolder?: string | undefined;
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

/**
 * Starts a sled agent, with simulated VMs unless `makeHypervisor` is given. It listens at once, and answers 503 until it
 * knows what runs here; then this resolves. With fencing it resolves at once, and answers 503 until it has a lease. Throws
 * when it can't listen, or its data can't be used.
 */
export async function startSledAgent(options: SledAgentOptions): Promise<SledAgentHandle> {
  const { identity } = options;
  const planted = new PlantedFaults();
  let address = options.listen;
  const transport = identity === undefined ? PLAIN_TRANSPORT : identifiedTransport(identity);
  const hypervisor =
    options.makeHypervisor?.(planted, () => address, transport) ??
    new SimulatedHypervisor(
      options.transitionMs ?? DEFAULT_TRANSITION_MS,
      planted,
      options.guestLogFile,
      transport,
      options.cpuModels,
    );
  let lease: LeaseKeeper | null = null;
  const agent = await SledAgent.open({
    ...options,
    hypervisor,
    dataDir: options.dataDir ?? null,
    leaseHeld: () => lease === null || lease.held,
  });
  if (options.fencing === undefined) await refuseDataWithLease(agent, options.dataDir);
  const leaseFolder = options.fencing === undefined ? null : await openLeaseFolder(options.dataDir);
  const app = await makeAgentApp(agent, identity);
  const faults = makeTestFaults(agent, hypervisor, planted);
  addAgentRoute(app, new AgentDescriber(options.dataDir ?? null, () => ({ cpuModels: hypervisor.cpuModels })));
  addVmmRoutes(app, agent, planted);
  if (options.testEndpoints) addTestRoutes(app, faults);
  const network = new NetworkTable(
    options.controlPlaneUrl,
    options.networkPollMs ?? DEFAULT_NETWORK_POLL_MS,
    identity?.connectToControlPlane(1),
  );
  const end = async (vms: 'end' | 'detach') => {
    await network.stop();
    await agent.close(vms);
    await lease?.stop(vms === 'end' || options.fencing?.vmsFolder === undefined);
    await leaseFolder?.close();
    app.server.closeAllConnections();
    await app.close();
    await identity?.stop();
  };
  let ready: Promise<void> = Promise.resolve();
  try {
    await app.listen(splitAddress(options.listen));
    const bound = app.server.address();
    address = withPort(options.listen, typeof bound === 'object' && bound !== null ? bound.port : 0);
    if (options.fencing === undefined || leaseFolder === null) await agent.recover();
    else {
      const keeper = makeLeaseKeeper(options, options.fencing, leaseFolder.path, agent);
      lease = keeper;
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

/** Throws when the data are of a sled with fencing, having let go of them. */
async function refuseDataWithLease(agent: SledAgent, dataDir: string | undefined): Promise<void> {
  if (dataDir === undefined || !existsSync(leasePath(dataDir))) return;
  await agent.close('detach');
  throw new Error(
    `${dataDir} is of a sled with fencing: the control plane counts on its lease. Start it with fencing; to be without, expunge the sled and add it anew, with an empty directory`,
  );
}

/** Where the lease is written down: the agent's data, or, without any, a folder that `close` removes. */
async function openLeaseFolder(dataDir: string | undefined): Promise<{ path: string; close: () => Promise<void> }> {
  if (dataDir !== undefined) return { path: dataDir, close: async () => {} };
  const path = await mkdtemp(join(tmpdir(), 'mooring-lease-'));
  return { path, close: () => rm(path, { recursive: true, force: true }) };
}

/** The keeper of the agent's lease, not renewing yet. Throws as {@link LeaseKeeper}. */
function makeLeaseKeeper(
  options: SledAgentOptions,
  fencing: FencingOptions,
  directory: string,
  agent: SledAgent,
): LeaseKeeper {
  const { controlPlaneUrl, name: sledName, guestLogFile, identity } = options;
  const { leaseMs, sledId, vmsFolder = null, onTrouble = () => {} } = fencing;
  return new LeaseKeeper({
    ...{ controlPlaneUrl, sledName, sledId, leaseMs, directory, vmsFolder, guestLogFile, onTrouble },
    connections: identity?.connectToControlPlane(2),
    living: () => agent.living(),
    powerOff: () => agent.powerOff(),
  });
}
