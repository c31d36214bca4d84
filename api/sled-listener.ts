/**
 * The sled-facing listener: HTTPS with client certificates of the installation's authority. Without one there is a single
 * endpoint, by which a sled joins; every other request must be of a sled whose certificate is good.
 */
import { constants } from 'node:crypto';
import type { Server } from 'node:https';
import type { TLSSocket } from 'node:tls';
import { type FastifyRequest, fastify } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { readCertificateRefusal } from '../db/queries/read-certificate-refusal.ts';
import type { IdentityRefusal } from '../model/identity.ts';
import { NODE_HTTP_OPTIONS, refusalOptions } from '../platform/http/http-errors.ts';
import type { Authority } from '../platform/identity/authority.ts';
import type { IdentityHolder } from '../platform/identity/holder.ts';
import { identifyPeer } from '../platform/identity/peer.ts';
import { closeApp, configureApp, urlOf } from './app.ts';
import type { ApiApp, ApiContext } from './context.ts';
import { httpErrorBody, IdentityRefused } from './errors.ts';
import { STANDSTILL_MS } from './limits.ts';
import { addLeaseRoutes } from './routes/leases.ts';
import { addNetworkRoutes } from './routes/network.ts';
import { addReportRoutes } from './routes/reports.ts';
import { addSledIdentityRoutes, JOIN_PATH, type SledCaller } from './routes/sled-identity.ts';

export interface SledListenerOptions {
  readonly authority: Authority;
  /** The address to listen on. */
  readonly host: string;
  /** 0 chooses a free one. */
  readonly port: number;
  /** Where sleds reach it, for example `https://mooring.example:12221`; by default where it listens. */
  readonly url?: string | undefined;
}

export interface RunningSledListener {
  readonly url: string;
  /** Answers what it has begun to, and closes every connection. */
  stop(): Promise<void>;
}

/** How long a request, and its headers, may take to arrive, in milliseconds. */
const REQUEST_MS = 30_000;
const HEADERS_MS = 10_000;
const REPORT_ROUTE = '/vmms/:vmm_id';

/** Starts the listener. `leaseBeatMs`: how often the API writes down that leases can be renewed. Throws when the port is taken. */
export async function startSledListener(
  options: SledListenerOptions,
  identity: IdentityHolder,
  context: ApiContext,
  leaseBeatMs: number,
): Promise<RunningSledListener> {
  const secure = fastify({
    ...refusalOptions(httpErrorBody),
    bodyLimit: 1024 * 1024,
    requestTimeout: REQUEST_MS,
    connectionTimeout: STANDSTILL_MS,
    forceCloseConnections: 'idle',
    https: {
      ...identity.secureContext,
      ...NODE_HTTP_OPTIONS,
      headersTimeout: HEADERS_MS,
      connectionsCheckingInterval: 1_000,
      requestCert: true,
      // Who shows none, or a bad one, is refused by the hook below, with a reason; and may join.
      rejectUnauthorized: false,
      // A resumed session would bring back what was verified when it was new.
      secureOptions: constants.SSL_OP_NO_TICKET,
    },
  }).withTypeProvider<ZodTypeProvider>();
  // The routes don't see what they are served over.
  const app = secure as unknown as ApiApp;
  const server: Server = secure.server;
  configureApp(app, context.log, context.metrics, true);
  const unlisten = identity.onRenewal(() => server.setSecureContext(identity.secureContext));

  const callers = new WeakMap<FastifyRequest, SledCaller>();
  const callerOf = (request: FastifyRequest): SledCaller => {
    const caller = callers.get(request);
    if (caller === undefined) throw new IdentityRefused('no_certificate');
    return caller;
  };
  app.addHook('onRequest', async (request) => {
    const route = request.routeOptions.url;
    if (route === JOIN_PATH) return;
    const refuse = (refusal: IdentityRefusal): never => {
      if (route === REPORT_ROUTE) context.metrics.reportsRefused.inc({ reason: refusal });
      throw new IdentityRefused(refusal);
    };
    const peer = identifyPeer(request.raw.socket as TLSSocket, identity);
    if (peer.refusal !== null) return refuse(peer.refusal);
    if (peer.identity.kind !== 'sled') return refuse('wrong_identity');
    const caller = { sledId: peer.identity.sledId, serial: peer.serial };
    callers.set(request, caller);
    // A report's own statement looks whether its certificate is still good.
    if (route === REPORT_ROUTE) return;
    const refusal = await readCertificateRefusal(context.db, caller);
    if (refusal !== null) refuse(refusal);
  });

  addReportRoutes(app, context, (request) => ({ kind: 'sled', ...callerOf(request) }));
  addNetworkRoutes(app, context);
  addLeaseRoutes(app, context, leaseBeatMs, callerOf);
  addSledIdentityRoutes(app, context, { authority: options.authority }, callerOf);
  await app.listen({ host: options.host, port: options.port });
  return {
    url: options.url ?? urlOf(app, 'https', options.host),
    async stop() {
      unlisten();
      await closeApp(app);
    },
  };
}
