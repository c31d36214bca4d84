/** The sled agent's HTTP server without its routes: who may speak to it, over what, and how an error is answered. */
import { constants } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { type FastifyError, type FastifyInstance, type FastifyRequest, fastify } from 'fastify';
import { z } from 'zod';
import { limitConnections } from '../platform/http/connection-limits.ts';
import {
  answerUnseenRequests,
  HTTP_ERROR_CODES,
  NODE_HTTP_OPTIONS,
  RouteTable,
  refusalOptions,
  refuseByHttp,
  type WriteErrorBody,
} from '../platform/http/http-errors.ts';
import { isOfPage } from '../platform/http/web-pages.ts';
import { identifyPeer } from '../platform/identity/peer.ts';
import { beginRequestSpan, endRequestSpan, installTracing } from '../platform/telemetry/tracing.ts';
import { AgentRefusal } from './agent.ts';
import { asDiskError } from './disk.ts';
import type { SledIdentity } from './sled-identity.ts';

const errorBody: WriteErrorBody = ({ statusCode, message }, requestId) => ({
  error_code: codeOf(statusCode),
  message,
  request_id: requestId,
});

/** How long a request, and its headers, may take to arrive, in milliseconds. */
const REQUEST_MS = 30_000;
const HEADERS_MS = 10_000;
/** How long a connection may stand still, its answer unread, in milliseconds. */
const STANDSTILL_MS = 120_000;
const SERVER_OPTIONS = {
  ...refusalOptions(errorBody),
  forceCloseConnections: true,
  bodyLimit: 1024 * 1024,
  requestTimeout: REQUEST_MS,
  connectionTimeout: STANDSTILL_MS,
};
const NODE_OPTIONS = { ...NODE_HTTP_OPTIONS, headersTimeout: HEADERS_MS, connectionsCheckingInterval: 1_000 };

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
  const app = identity === undefined ? fastify({ ...SERVER_OPTIONS, http: NODE_OPTIONS }) : makeSecureApp(identity);
  const routes = new RouteTable();
  let isClosing = false;
  app.addHook('onRoute', (route) => routes.add(route.method, route.url));
  app.addHook('preClose', async () => {
    isClosing = true;
  });
  app.addHook('onRequest', async (request) => refuseByHttp(request, isClosing));
  app.addHook('onSend', async (request, reply) => {
    reply.header('x-request-id', request.id);
  });
  answerUnseenRequests(app.server, errorBody);
  limitConnections(app.server);
  app.setNotFoundHandler((request, reply) => {
    const { error, allow } = routes.refuse(request);
    if (allow.length > 0) reply.header('allow', allow.join(', '));
    void reply.status(error.statusCode).send(errorBody(error, request.id));
  });
  app.addHook('onRequest', beginRequestSpan);
  app.addHook('onResponse', endRequestSpan);
  await installTracing('mooring-sled-agent');
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message } = describeError(error);
    void reply.status(status).send({ error_code: code, message, request_id: request.id });
  });
  app.addHook('onRequest', async (request) => {
    if (identity !== undefined) requireCommander(identity, request);
    else if (isOfPage(request.headers))
      throw new AgentRefusal(403, 'NOT_THE_CONTROL_PLANE', 'no page in a browser commands a sled agent');
  });
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
      ...NODE_OPTIONS,
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
  const status = (error as Partial<FastifyError>).statusCode ?? 500;
  return { status, code: status >= 500 && status !== 503 ? 'INTERNAL' : codeOf(status), message };
}

/** The error code of a status of HTTP itself, as agents write theirs: `METHOD_NOT_ALLOWED`. */
function codeOf(status: number): string {
  const name = HTTP_ERROR_CODES[status] ?? 'InvalidRequest';
  return name.replace(/(?<=.)[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
}

/** Where the agent says who it is. */
export const AGENT_ROUTE = '/agent';
/** What another sled may ask: who has the guest of a migration between the two. */
const SLED_ROUTE = '/vmms/:vmm_id/state';

/** Refuses whoever is not the control plane; another sled may read a VMM's state. Throws an {@link AgentRefusal}. */
function requireCommander(identity: SledIdentity, request: FastifyRequest): void {
  const peer = identifyPeer(request.raw.socket as TLSSocket, identity.holder);
  if (peer.identity?.kind === 'control_plane') return;
  const reads = request.method === 'GET' && request.routeOptions.url === SLED_ROUTE;
  if (reads && peer.refusal === null && peer.identity.kind === 'sled' && !identity.isRevoked(peer.serial)) return;
  throw new AgentRefusal(
    peer.identity === null ? 401 : 403,
    'NOT_THE_CONTROL_PLANE',
    'only the control plane of this installation commands a sled agent',
  );
}
