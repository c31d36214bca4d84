import { constants } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { z } from 'zod';
import { identifyPeer } from '../platform/identity/peer.ts';
import { beginRequestSpan, endRequestSpan, installTracing } from '../platform/telemetry/tracing.ts';
import { registerRequest, serialConsoleRequest, vmmStateRequest } from '../wire/sled-protocol.ts';
import { AgentRefusal, SledAgent } from './agent.ts';
import { type Fault, FaultBook, type FaultCall, fault } from './faults.ts';
import type { GuestLogEntry, WitnessedHypervisor } from './hypervisor.ts';
import { LeaseKeeper, leasePath } from './lease-keeper.ts';
import { NetworkTable } from './network-table.ts';
import { identifiedTransport, type PeerTransport, PLAIN_TRANSPORT } from './peer-transport.ts';
import { SimulatedHypervisor } from './simulated-hypervisor.ts';
import type { SledIdentity } from './sled-identity.ts';

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
  /** How often it asks where instances live, in milliseconds; default 1000, 0 never. */
  readonly networkPollMs?: number;
  /** Appends when a guest began or ceased to execute to this file, a line of JSON each; nowhere when absent. */
  readonly guestLogFile?: string;
  /**
   * Makes what runs the VMs; simulated ones by default. `faults` are those planted on the agent; `agentAddress` is its
   * `ip:port`, known once it listens; `transport` is how guests are handed over to other sleds.
   */
  readonly makeHypervisor?: (
    faults: FaultBook,
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
  /** Where the agent keeps its book between runs; without it, the book is gone with the agent. */
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
  readonly faults: {
    /** What is returned takes the fault away again. */
    plant(planted: Fault): () => void;
    clear(): void;
    lose(vmmId: string): void;
    halt(vmmId: string): void;
    crash(vmmId: string): void;
    /** Holds reports back, of one VMM if named. */
    holdReports(on: boolean, vmmId?: string): void;
    guestLog(): readonly GuestLogEntry[];
  };
  readonly hypervisor: WitnessedHypervisor;
  /** What it knows of where instances live. */
  readonly network: Pick<NetworkTable, 'entries' | 'passes'>;
  /** Resolves when it knows what runs here and takes commands: with fencing, once it has a lease. */
  readonly ready: Promise<void>;
  /** Answers what it has begun to, then ends every VM. */
  stop(): Promise<void>;
  /** Ends without ending the VMs, where the hypervisor can: an agent that is started again with the same data finds them. */
  detach(): Promise<void>;
  /** Ends as a crash of the server would: connections are cut, nothing more is said. */
  kill(): Promise<void>;
}

const DEFAULT_NETWORK_POLL_MS = 1_000;
const vmmParams = z.object({ vmm_id: z.guid() });

/**
 * Starts a sled agent, with simulated VMs unless told otherwise. It listens at once, and answers 503 until it knows what
 * runs here; then this resolves. With fencing it resolves at once, and answers 503 until it has a lease. Throws when it
 * can't listen, or its data can't be used.
 */
export async function startSledAgent(options: SledAgentOptions): Promise<SledAgentHandle> {
  const book = new FaultBook();
  let address = options.listen;
  const { identity } = options;
  const transport = identity === undefined ? PLAIN_TRANSPORT : identifiedTransport(identity);
  const hypervisor =
    options.makeHypervisor?.(book, () => address, transport) ??
    new SimulatedHypervisor(options.transitionMs ?? 50, book, options.guestLogFile, transport);
  let lease: LeaseKeeper | null = null;
  const agent = await SledAgent.open({
    ...options,
    hypervisor,
    dataDir: options.dataDir ?? null,
    leaseHeld: () => lease === null || lease.held,
  });
  if (options.fencing === undefined && options.dataDir !== undefined && existsSync(leasePath(options.dataDir))) {
    await agent.close('detach');
    throw new Error(
      `${options.dataDir} is of a sled with fencing: the control plane counts on its lease. Start it with fencing; to be without, expunge the sled and add it anew, with an empty directory`,
    );
  }
  const throwAway = options.fencing !== undefined && options.dataDir === undefined;
  const leaseDir = throwAway ? await mkdtemp(join(tmpdir(), 'mooring-lease-')) : (options.dataDir ?? '');
  const app = makeApp(identity);
  app.addHook('onRequest', beginRequestSpan);
  app.addHook('onResponse', endRequestSpan);
  await installTracing('mooring-sled-agent');
  const faults = {
    plant: (planted: Fault) => book.plant(planted),
    clear: () => {
      book.clear();
      agent.reporter.hold(false);
    },
    lose: (vmmId: string) => void agent.lose(vmmId),
    halt: (vmmId: string) => hypervisor.halt(vmmId),
    crash: (vmmId: string) => hypervisor.crash(vmmId),
    holdReports: (on: boolean, vmmId?: string) => agent.reporter.hold(on, vmmId),
    guestLog: () => hypervisor.guestLog,
  };

  app.setErrorHandler((error, request, reply) => {
    const [status, code] =
      error instanceof AgentRefusal
        ? [error.status, error.errorCode]
        : error instanceof z.ZodError
          ? [400, 'INVALID_REQUEST']
          : [(error as { statusCode?: number }).statusCode ?? 500, 'INTERNAL'];
    const message =
      error instanceof z.ZodError ? z.prettifyError(error) : error instanceof Error ? error.message : String(error);
    void reply.status(status).send({ error_code: code, message, request_id: request.id });
  });

  if (identity !== undefined) app.addHook('onRequest', async (request) => requireCommander(identity, request));
  app.addHook('onRequest', async (request) => {
    if (!request.url.startsWith('/test/')) agent.requireReady();
  });

  /** Answers a call, with the fault that is planted for it, if any. */
  async function answer(
    request: FastifyRequest,
    reply: FastifyReply,
    call: FaultCall,
    vmmId: string | null,
    name: string | null,
    act: () => unknown,
  ) {
    const planted = book.takeCall(call, vmmId, name);
    switch (planted?.type) {
      case undefined:
        return act();
      case 'refuse':
        if (call === 'state:migration_target' && vmmId !== null && planted.status < 500) agent.refuseMigration(vmmId);
        return reply.status(planted.status).send({
          error_code: planted.error_code ?? 'REFUSED',
          message: planted.message ?? 'refused by a planted fault',
          request_id: request.id,
        });
      case 'delay':
        await pause(planted.ms);
        return act();
      case 'answer_late': {
        const done = await act();
        await pause(planted.ms);
        return done;
      }
      case 'drop_before':
        request.raw.socket.destroy();
        return reply.hijack();
      case 'drop_after':
        await act();
        request.raw.socket.destroy();
        return reply.hijack();
      case 'garbage':
        await act();
        return { nonsense: true };
    }
  }

  app.put('/vmms/:vmm_id', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const body = registerRequest.parse(request.body);
    return answer(request, reply, 'register', vmm_id, body.vmm_spec.name, () => agent.register(vmm_id, body));
  });
  app.delete('/vmms/:vmm_id', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    return answer(request, reply, 'unregister', vmm_id, agent.nameOf(vmm_id), async () => ({
      updated_runtime: await agent.unregister(vmm_id),
    }));
  });
  app.put('/vmms/:vmm_id/state', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const { state } = vmmStateRequest.parse(request.body);
    return answer(request, reply, `state:${state.type}`, vmm_id, agent.nameOf(vmm_id), async () => ({
      updated_runtime: await agent.command(vmm_id, state),
    }));
  });
  app.get('/vmms/:vmm_id/state', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    return answer(request, reply, 'get', vmm_id, agent.nameOf(vmm_id), () => agent.read(vmm_id));
  });
  app.get('/vmms', async (request, reply) =>
    answer(request, reply, 'list', null, null, () => ({ vmms: agent.inventory() })),
  );
  app.get('/vmms/:vmm_id/serial-console', async (request) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const { from_start, max_bytes } = serialConsoleRequest.parse(request.query);
    return agent.readConsole(vmm_id, from_start, max_bytes);
  });

  if (options.testEndpoints) {
    app.post('/test/faults', async (request, reply) => {
      faults.plant(fault.parse(request.body));
      return reply.status(204).send();
    });
    app.delete('/test/faults', async (_, reply) => {
      faults.clear();
      return reply.status(204).send();
    });
    app.post('/test/vmms/:vmm_id/:what', async (request, reply) => {
      const { vmm_id, what } = vmmParams.extend({ what: z.enum(['lose', 'halt', 'crash']) }).parse(request.params);
      faults[what](vmm_id);
      return reply.status(204).send();
    });
    app.get('/test/guest-log', async () => ({ entries: faults.guestLog() }));
  }

  let ready: Promise<void> = Promise.resolve();
  const at = options.listen.lastIndexOf(':');
  const host = options.listen.slice(0, at).replace(/[[\]]/g, '');
  const network = new NetworkTable(
    options.controlPlaneUrl,
    options.networkPollMs ?? DEFAULT_NETWORK_POLL_MS,
    identity?.connectToControlPlane(1),
  );
  const end = async (vms: 'end' | 'detach') => {
    await network.stop();
    await agent.close(vms);
    await lease?.stop(vms === 'end' || options.fencing?.vmsFolder === undefined);
    if (throwAway) await rm(leaseDir, { recursive: true, force: true });
    app.server.closeAllConnections();
    await app.close();
    await identity?.stop();
  };
  try {
    await app.listen({ host, port: Number(options.listen.slice(at + 1)) });
    const bound = app.server.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : 0;
    address = `${options.listen.slice(0, at)}:${port}`;
    if (options.fencing === undefined) await agent.recover();
    else {
      const { leaseMs, sledId, vmsFolder = null, onTrouble = () => {} } = options.fencing;
      const { controlPlaneUrl, name: sledName, guestLogFile } = options;
      const keeper = new LeaseKeeper({
        ...{ controlPlaneUrl, sledName, sledId, leaseMs, vmsFolder, guestLogFile, onTrouble },
        connections: identity?.connectToControlPlane(2),
        directory: leaseDir,
        living: () => agent.living(),
        powerOff: () => agent.powerOff(),
      });
      lease = keeper;
      // Nothing is taken up on a lease of an earlier life: until it has one of its own, its watchdog has the clock.
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

const SERVER_OPTIONS = { forceCloseConnections: true, bodyLimit: 1024 * 1024 };

/** The agent's HTTP server. With an identity: TLS that takes nobody without a certificate of the same authority. */
function makeApp(identity: SledIdentity | undefined): FastifyInstance {
  if (identity === undefined) return fastify(SERVER_OPTIONS);
  const { holder } = identity;
  const secure = fastify({
    ...SERVER_OPTIONS,
    https: {
      ...holder.secureContext,
      requestCert: true,
      rejectUnauthorized: true,
      // A resumed session would bring back what was verified when it was new.
      secureOptions: constants.SSL_OP_NO_TICKET,
    },
  });
  const unlisten = holder.onRenewal(() => secure.server.setSecureContext(holder.secureContext));
  secure.server.once('close', unlisten);
  // The routes don't see what they are served over.
  return secure as unknown as FastifyInstance;
}

/** What another sled may ask: who has the guest of a migration between the two. */
const SLED_ROUTE = '/vmms/:vmm_id/state';

/** Refuses whoever is not the control plane; another sled may read a VMM's state. Throws an {@link AgentRefusal}. */
function requireCommander(identity: SledIdentity, request: FastifyRequest): void {
  const peer = identifyPeer(request.raw.socket as TLSSocket);
  if (peer.identity?.kind === 'control_plane') return;
  const reads = request.method === 'GET' && request.routeOptions.url === SLED_ROUTE;
  if (reads && peer.refusal === null && peer.identity.kind === 'sled' && !identity.isRevoked(peer.serial)) return;
  throw new AgentRefusal(
    peer.identity === null ? 401 : 403,
    'NOT_THE_CONTROL_PLANE',
    'only the control plane of this installation commands a sled agent',
  );
}
