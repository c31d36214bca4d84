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
import { SledDirectory, warnWithoutAuthority } from '../activities/sled-directory.ts';
import { WorkflowStarter } from '../activities/workflow-starter.ts';
import { openDatabase } from '../db/connect.ts';
import { readCapacity } from '../db/queries/read-capacity.ts';
import { becomeControlPlane } from '../identity/control-plane.ts';
import { startEndpoint } from '../telemetry/endpoint.ts';
import { Metrics } from '../telemetry/metrics.ts';
import { readinessProblems } from '../telemetry/readiness.ts';
import { installTracing } from '../telemetry/tracing.ts';
import { connectTemporalClient } from '../worker/temporal-client.ts';
import type { TemporalSettings } from '../worker/temporal-connection.ts';
import { dressApp } from './app.ts';
import type { ApiContext } from './context.ts';
import { Operations } from './operations.ts';
import { addAffinityGroupRoutes } from './routes/affinity-groups.ts';
import { addDrainRoutes } from './routes/drains.ts';
import { addHistoryRoutes } from './routes/history.ts';
import { addInstanceRoutes } from './routes/instances.ts';
import { addNetworkRoutes } from './routes/network.ts';
import { addOperationRoutes } from './routes/operations.ts';
import { addProjectRoutes } from './routes/projects.ts';
import { addReconcilerRoutes } from './routes/reconcilers.ts';
import { addReportRoutes } from './routes/reports.ts';
import { addSerialConsoleRoutes } from './routes/serial-console.ts';
import { addInviteRoutes } from './routes/sled-identity.ts';
import { addSledRoutes } from './routes/sleds.ts';
import { type RunningSledListener, type SledListenerOptions, startSledListener } from './sled-listener.ts';

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
  /** `ip:port` where metrics are shown; nowhere when absent. */
  readonly metricsListen?: string | undefined;
  /** Where sleds join and speak with identities of their own; without it they can't. */
  readonly sledListener?: SledListenerOptions | undefined;
  /** Lets sleds be added that speak plain HTTP, without an identity; default false. */
  readonly plainSleds?: boolean;
}

export interface RunningApi {
  readonly url: string;
  /** Where its metrics are; `null` when nowhere. */
  readonly metricsUrl: string | null;
  /** Where sleds that have joined reach it; `null` when nowhere. */
  readonly sledUrl: string | null;
  /** Takes no new calls, answers those that wait, and closes every connection. */
  stop(): Promise<void>;
}

const DEFAULT_WAIT_MS = 60_000;

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
  const { sledListener } = options;
  const identity = sledListener === undefined ? null : await becomeControlPlane(sledListener.authority);
  const directory = identity === null ? null : await SledDirectory.open(db, identity);
  if (directory === null) await warnWithoutAuthority(db, options.log);
  const sleds = new SledClient(
    (sled, call, answer, seconds) => metrics.sledCallSeconds.observe({ sled: sled.name, call, answer }, seconds),
    directory,
  );
  let listening: RunningSledListener | null = null;
  const context: ApiContext = {
    db,
    temporal,
    workflows: new WorkflowStarter(temporal),
    operations: new Operations(temporal, db),
    sleds,
    log: options.log,
    metrics,
    get sledJoining() {
      return sledListener === undefined || listening === null
        ? null
        : { authority: sledListener.authority, url: listening.url };
    },
    plainSleds: options.plainSleds ?? false,
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

  dressApp(app, options.log, metrics);

  addInstanceRoutes(app, context);
  addHistoryRoutes(app, context);
  addAffinityGroupRoutes(app, context);
  addSerialConsoleRoutes(app, context);
  addOperationRoutes(app, context);
  addProjectRoutes(app, context);
  addSledRoutes(app, context);
  addInviteRoutes(app, context);
  addDrainRoutes(app, context);
  addReconcilerRoutes(app, context);
  addReportRoutes(app, context);
  addNetworkRoutes(app, context);
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
  if (sledListener !== undefined && identity !== null)
    listening = await startSledListener(sledListener, identity, context);
  await app.listen({ host: options.host, port: options.port });
  const bound = app.server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  return {
    url: `http://${host}:${port}`,
    metricsUrl: endpoint?.url ?? null,
    sledUrl: listening?.url ?? null,
    async stop() {
      await endpoint?.stop();
      await listening?.stop();
      app.server.closeIdleConnections();
      const closing = app.close();
      const cut = setTimeout(() => app.server.closeAllConnections(), 5_000);
      await closing;
      clearTimeout(cut);
      directory?.close();
      await Promise.allSettled([connected.close(), database.close(), sleds.close(), tracing?.flush()]);
    },
  };
}
