/** The sled agent's HTTP server without its routes: who may speak to it, over what, and how an error is answered. */
import { constants } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { type FastifyError, type FastifyInstance, type FastifyRequest, fastify } from 'fastify';
import { z } from 'zod';
import { identifyPeer } from '../platform/identity/peer.ts';
import { beginRequestSpan, endRequestSpan, installTracing } from '../platform/telemetry/tracing.ts';
import { AgentRefusal } from './agent.ts';
import { asDiskError } from './disk.ts';
import type { SledIdentity } from './sled-identity.ts';

const SERVER_OPTIONS = { forceCloseConnections: true, bodyLimit: 1024 * 1024 };

/** What a server without routes must know of its agent. */
export interface AgentGate {
  /** Throws while the agent can't answer. */
  requireReady(): void;
}

/**
 * Makes the agent's server, not listening yet. With an identity it takes commands from the control plane alone, over TLS.
 * Until the agent knows what runs here, every call is refused but those below `/test/` and the question who it is.
 */
export async function makeAgentApp(
  agent: AgentGate,
  identity: SledIdentity | undefined,
  onTrouble: (message: string) => void = () => {},
): Promise<FastifyInstance> {
  const app = identity === undefined ? fastify(SERVER_OPTIONS) : makeSecureApp(identity);
  app.addHook('onRequest', beginRequestSpan);
  app.addHook('onResponse', endRequestSpan);
  await installTracing('mooring-sled-agent');
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message } = describeError(error);
    void reply.status(status).send({ error_code: code, message, request_id: request.id });
  });
  if (identity !== undefined) app.addHook('onRequest', async (request) => requireCommander(identity, request));
  app.addHook('onRequest', async (request) => {
    const { url } = request.routeOptions;
    if (!request.url.startsWith('/test/') && url !== AGENT_ROUTE) agent.requireReady();
  });
  // A connection that can't be taken for want of a file descriptor must not end the agent.
  app.server.on('error', (error) => onTrouble(`a connection could not be taken: ${error.message}`));
  return app;
}

/** TLS that takes nobody without a certificate of the same authority. */
function makeSecureApp({ holder }: SledIdentity): FastifyInstance {
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

function describeError(error: unknown): { status: number; code: string; message: string } {
  if (error instanceof z.ZodError) return { status: 400, code: 'INVALID_REQUEST', message: z.prettifyError(error) };
  const message = error instanceof Error ? error.message : String(error);
  const disk = asDiskError(error);
  if (disk !== null) return { status: disk.answer.status, code: disk.answer.errorCode, message };
  if (error instanceof AgentRefusal) return { status: error.status, code: error.errorCode, message };
  return { status: (error as Partial<FastifyError>).statusCode ?? 500, code: 'INTERNAL', message };
}

/** Where the agent says who it is. */
export const AGENT_ROUTE = '/agent';
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
