/** The API: operators and their programs, and the reports of sled agents. */
import { randomUUID } from 'node:crypto';
import swagger from '@fastify/swagger';
import { Client, Connection } from '@temporalio/client';
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
import type { TemporalSettings } from '../worker/temporal-connection.ts';
import type { ApiContext } from './context.ts';
import { describeError } from './errors.ts';
import { Operations } from './operations.ts';
import { addAffinityGroupRoutes } from './routes/affinity-groups.ts';
import { addDrainRoutes } from './routes/drains.ts';
import { addInstanceRoutes } from './routes/instances.ts';
import { addNetworkRoutes } from './routes/network.ts';
import { addOperationRoutes } from './routes/operations.ts';
import { addProjectRoutes } from './routes/projects.ts';
import { addReconcilerRoutes } from './routes/reconcilers.ts';
import { addReportRoutes } from './routes/reports.ts';
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
}

export interface RunningApi {
  readonly url: string;
  /** Takes no new calls, answers those that wait, and closes every connection. */
  stop(): Promise<void>;
}

const DEFAULT_WAIT_MS = 60_000;

/** Starts the API. Throws when Temporal can't be reached or the port is taken. */
export async function startApi(options: ApiOptions): Promise<RunningApi> {
  const database = openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-api' });
  const { db } = database;
  const { namespace } = options.temporal;
  const connection = await Connection.connect(options.temporal.connection);
  const temporal = new Client({ connection, namespace });
  const sleds = new SledClient();
  const context: ApiContext = {
    db,
    temporal,
    workflows: new WorkflowStarter(temporal),
    operations: new Operations(temporal, db),
    sleds,
    log: options.log,
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

  addInstanceRoutes(app, context);
  addAffinityGroupRoutes(app, context);
  addOperationRoutes(app, context);
  addProjectRoutes(app, context);
  addSledRoutes(app, context);
  addDrainRoutes(app, context);
  addReconcilerRoutes(app, context);
  addReportRoutes(app, context);
  addNetworkRoutes(app, context);
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  await app.listen({ host: options.host, port: options.port });
  const bound = app.server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  return {
    url: `http://${host}:${port}`,
    async stop() {
      app.server.closeIdleConnections();
      const closing = app.close();
      const cut = setTimeout(() => app.server.closeAllConnections(), 5_000);
      await closing;
      clearTimeout(cut);
      await Promise.allSettled([connection.close(), database.close(), sleds.close()]);
    },
  };
}
