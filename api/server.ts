/** The API: operators and their programs, and the reports of sled agents. */
import { randomUUID } from 'node:crypto';
import swagger from '@fastify/swagger';
import { fastify } from 'fastify';
import {
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { SledClient } from '../activities/sled-client.ts';
import { WorkflowStarter } from '../activities/workflow-starter.ts';
import { openDatabase } from '../db/connect.ts';
import { readCapacity } from '../db/queries/read-capacity.ts';
import { DEFAULT_BEAT_MS } from '../model/lease.ts';
import { startEndpoint } from '../telemetry/endpoint.ts';
import { Metrics } from '../telemetry/metrics.ts';
import { readinessProblems } from '../telemetry/readiness.ts';
import { beginRequestSpan, endRequestSpan, installTracing } from '../telemetry/tracing.ts';
import { connectTemporalClient } from '../worker/temporal-client.ts';
import type { TemporalSettings } from '../worker/temporal-connection.ts';
import type { ApiContext } from './context.ts';
import { describeError } from './errors.ts';
import { Operations } from './operations.ts';
import { addAffinityGroupRoutes } from './routes/affinity-groups.ts';
import { addDrainRoutes } from './routes/drains.ts';
import { addHistoryRoutes } from './routes/history.ts';
import { addInstanceRoutes } from './routes/instances.ts';
import { addLeaseRoutes, startBeating } from './routes/leases.ts';
import { addNetworkRoutes } from './routes/network.ts';
import { addOperationRoutes } from './routes/operations.ts';
import { addProjectRoutes } from './routes/projects.ts';
import { addReconcilerRoutes } from './routes/reconcilers.ts';
import { addReportRoutes } from './routes/reports.ts';
import { addSerialConsoleRoutes } from './routes/serial-console.ts';
import { addSledRoutes } from './routes/sleds.ts';

export interface ApiOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
  readonly host: string;
  /** 0 chooses a free one. */
  readonly port: number;
  /** Where the Temporal Web UI is, for links. */
  readonly temporalUiUrl?: string | null;
  readonly log: Logger;
  /** How long a call waits for its saga's word, in milliseconds; default 60000. A client may ask for less. */
  readonly waitMs?: number;
  /** How long registering a VMM may take, in milliseconds; default 15000. */
  readonly registerTimeoutMs?: number;
  /**
   * How often it writes down that sled agents can renew their leases, in milliseconds; default 1000. The shortest lease is
   * fifteen times that. 0 never does.
   */
  readonly leaseBeatMs?: number;
  /** `ip:port` where metrics are shown; nowhere when absent. */
  readonly metricsListen?: string | undefined;
}

export interface RunningApi {
  readonly url: string;
  /** Where its metrics are; `null` when nowhere. */
  readonly metricsUrl: string | null;
  /** Takes no new calls, answers those that wait, and closes every connection. */
  stop(): Promise<void>;
}

const DEFAULT_WAIT_MS = 60_000;
/** Reports and renewals come by the thousand. */
const FREQUENT_ROUTES: ReadonlySet<string> = new Set(['/vmms/:vmm_id', '/sleds/:sled_id/lease']);

/** Starts the API. Throws when Temporal can't be reached or the port is taken. */
export async function startApi(options: ApiOptions): Promise<RunningApi> {
  const database = openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-api' });
  const { db } = database;
  const { namespace } = options.temporal;
  const tracing = await installTracing('mooring-api');
  const connected = await connectTemporalClient(options.temporal, db, options.log, tracing !== null);
  const temporal = connected.client;
  const metrics = new Metrics();
  metrics.watchCapacity(() => readCapacity(db));
  const sleds = new SledClient((sled, call, answer, seconds) =>
    metrics.sledCallSeconds.observe({ sled: sled.name, call, answer }, seconds),
  );
  const context: ApiContext = {
    db,
    temporal,
    workflows: new WorkflowStarter(temporal),
    operations: new Operations(temporal, db),
    sleds,
    log: options.log,
    metrics,
    waitLimitMs: options.waitMs ?? DEFAULT_WAIT_MS,
    registerTimeoutMs: options.registerTimeoutMs,
    webUiLink: (workflowId, runId) =>
      options.temporalUiUrl
        ? `${options.temporalUiUrl}/namespaces/${namespace}/workflows/${encodeURIComponent(workflowId)}/${runId}`
        : null,
  };

  const app = fastify({
    genReqId: () => randomUUID(),
    bodyLimit: 1024 * 1024,
    requestTimeout: 0,
    forceCloseConnections: 'idle',
  }).withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Mooring', version: '0.1.0', description: 'Keeps virtual machines tied to physical servers.' },
    },
    transform: jsonSchemaTransform,
  });

  app.addHook('onRequest', beginRequestSpan);
  app.addHook('onResponse', endRequestSpan);
  app.addHook('onSend', async (request, reply) => {
    reply.header('x-request-id', request.id);
  });
  app.setNotFoundHandler((request, reply) => {
    void reply.status(404).send({
      error_code: 'NotFound',
      message: `no such endpoint: ${request.method} ${request.url}`,
      request_id: request.id,
    });
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message } = describeError(error);
    if (status >= 500 && status !== 503 && status !== 507)
      options.log.error({ err: error, request_id: request.id }, 'a request failed');
    void reply.status(status).send({ error_code: code, message, request_id: request.id });
  });
  // A client may send an empty body with a content type of JSON, as the Oxide clients do.
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_, body, done) => {
    if (body === '') return done(null, undefined);
    try {
      done(null, JSON.parse(String(body)));
    } catch {
      done(Object.assign(new Error('the body is not valid JSON'), { statusCode: 400 }), undefined);
    }
  });

  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'none';
    if (request.method !== 'GET') {
      const { instance, sled_id, vmm_id, project } = request.params as Record<string, string | undefined>;
      const subject = { instance, sled_id, vmm_id, project };
      const call = { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime) };
      // What people ask for is worth a line.
      options.log[FREQUENT_ROUTES.has(route) ? 'debug' : 'info'](
        { request_id: request.id, ...subject, ...call },
        'a request was answered',
      );
    }
    metrics.httpRequestSeconds.observe(
      { method: request.method, route, status: String(reply.statusCode) },
      reply.elapsedTime / 1000,
    );
  });

  addInstanceRoutes(app, context);
  addHistoryRoutes(app, context);
  addAffinityGroupRoutes(app, context);
  addSerialConsoleRoutes(app, context);
  addOperationRoutes(app, context);
  addProjectRoutes(app, context);
  addSledRoutes(app, context);
  addDrainRoutes(app, context);
  addReconcilerRoutes(app, context);
  addReportRoutes(app, context);
  addNetworkRoutes(app, context);
  const leaseBeatMs = options.leaseBeatMs ?? DEFAULT_BEAT_MS;
  addLeaseRoutes(app, context, leaseBeatMs);
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  app.get('/healthz', { schema: { hide: true } }, async () => 'ok\n');
  app.get('/readyz', { schema: { hide: true } }, async (_, reply) => {
    const problems = await readinessProblems(db, connected.connection);
    return reply.status(problems.length === 0 ? 200 : 503).send(`${problems.join('\n') || 'ready'}\n`);
  });
  const endpoint =
    options.metricsListen === undefined
      ? null
      : await startEndpoint({
          listen: options.metricsListen,
          metrics: () => metrics.registry.metrics(),
          problems: () => readinessProblems(db, connected.connection),
        });
  await app.listen({ host: options.host, port: options.port });
  const stopBeating = startBeating(context, leaseBeatMs);
  const bound = app.server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  return {
    url: `http://${host}:${port}`,
    metricsUrl: endpoint?.url ?? null,
    async stop() {
      await Promise.all([endpoint?.stop(), stopBeating()]);
      app.server.closeIdleConnections();
      const closing = app.close();
      const cut = setTimeout(() => app.server.closeAllConnections(), 5_000);
      await closing;
      clearTimeout(cut);
      await Promise.allSettled([connected.close(), database.close(), sleds.close(), tracing?.flush()]);
    },
  };
}
