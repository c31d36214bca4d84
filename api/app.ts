/** What the two listeners of the API have in common: how they trace, log, count, parse and answer errors. */
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { limitConnections, SHARES } from '../platform/http/connection-limits.ts';
import {
  answerUnseenRequests,
  HttpError,
  NO_PAGE_HEADERS,
  RouteTable,
  refuseByHttp,
} from '../platform/http/http-errors.ts';
import type { Metrics } from '../platform/telemetry/metrics.ts';
import { beginRequestSpan, endRequestSpan } from '../platform/telemetry/tracing.ts';
import type { ApiApp } from './context.ts';
import { describeError, errorAnswer, httpErrorBody } from './errors.ts';
import { refuseNul } from './limits.ts';

/** Reports and renewals come by the thousand. */
const FREQUENT_ROUTES: ReadonlySet<string> = new Set(['/vmms/:vmm_id', '/sleds/:sled_id/lease']);

const STREAM_ROUTE = '/v1/events';

/** Where a listener that listens on `host` is reached, with the port that it was given. */
export function urlOf(app: ApiApp, scheme: 'http' | 'https', host: string): string {
  const bound = app.server.address();
  if (bound === null || typeof bound === 'string') throw new Error(`${host} is no address of a network`);
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${bound.port}`;
}

/** How long what is under way may take when a listener ends, in milliseconds. */
const CLOSE_MS = 5_000;

/** Answers what a listener has begun to answer, then closes every connection. */
export async function closeApp(app: ApiApp): Promise<void> {
  app.server.closeIdleConnections();
  const closing = app.close();
  const cut = setTimeout(() => app.server.closeAllConnections(), CLOSE_MS);
  await closing;
  clearTimeout(cut);
}

/**
 * Gives a listener its hooks, its error bodies and its parser; before its routes are added. `isForSleds`: whether sled agents
 * call it, who keep more connections than anybody.
 */
export function configureApp(app: ApiApp, log: Logger, metrics: Metrics, isForSleds: boolean): void {
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.addHook('onRequest', beginRequestSpan);
  app.addHook('onResponse', endRequestSpan);
  app.addHook('onSend', async (request, reply) => {
    reply.header('x-request-id', request.id);
    // A page has a policy of its own.
    for (const [name, value] of Object.entries(NO_PAGE_HEADERS)) if (!reply.hasHeader(name)) reply.header(name, value);
    // What a cache would give somebody else later carries the mark, and is not this API's word any more.
    if (!reply.hasHeader('cache-control')) reply.header('cache-control', 'no-store');
  });
  const routes = new RouteTable();
  let isClosing = false;
  app.addHook('onRoute', (route) => routes.add(route.method, route.url));
  app.addHook('preClose', async () => {
    isClosing = true;
  });
  app.addHook('onRequest', async (request) => refuseByHttp(request, isClosing));
  answerUnseenRequests(app.server, httpErrorBody);
  limitConnections(app.server, { share: isForSleds ? SHARES.sleds : SHARES.operators });
  app.setNotFoundHandler((request, reply) => {
    const { error, allow } = routes.refuse(request);
    if (allow.length > 0) reply.header('allow', allow.join(', '));
    void reply.status(error.statusCode).send(httpErrorBody(error, request.id));
  });
  app.setErrorHandler((error, request, reply) => {
    const described = describeError(error);
    const { status } = described;
    if (status >= 500 && status !== 503 && status !== 507)
      log.error({ err: error, request_id: request.id }, 'a request failed');
    void reply.status(status).send(errorAnswer(described, request.id));
  });
  // A client may send an empty body with a content type of JSON, as the Oxide clients do.
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_, body, done) => {
    if (body === '') return done(null, undefined);
    try {
      done(null, JSON.parse(String(body)));
    } catch {
      done(new HttpError(400, 'the body is not valid JSON'), undefined);
    }
  });

  app.addHook('preValidation', async (request) => refuseNul(request));

  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'none';
    if (request.method !== 'GET') {
      const { instance, sled_id, vmm_id, project } = (request.params ?? {}) as Record<string, string | undefined>;
      const subject = { instance, sled_id, vmm_id, project };
      const call = { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime) };
      // What people ask for is worth a line.
      log[FREQUENT_ROUTES.has(route) ? 'debug' : 'info'](
        { request_id: request.id, ...subject, ...call },
        'a request was answered',
      );
    }
    // A stream is no answer that anybody waits for.
    if (route === STREAM_ROUTE && reply.statusCode === 200) return;
    metrics.httpRequestSeconds.observe(
      { method: request.method, route, status: String(reply.statusCode) },
      reply.elapsedTime / 1000,
    );
  });
}
