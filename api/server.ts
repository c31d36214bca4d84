/** The API: operators and their programs, and the reports of sled agents. */
import swagger from '@fastify/swagger';
import { fastify } from 'fastify';
import { jsonSchemaTransform, type ZodTypeProvider } from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { SledAnswers } from '../activities/sled-answers.ts';
import { SledClient } from '../activities/sled-client.ts';
import { SledDirectory, warnWithoutAuthority } from '../activities/sled-directory.ts';
import { checkSessions } from '../db/check-sessions.ts';
import { type OpenDatabase, openDatabase, pingDatabase } from '../db/connect.ts';
import { OperationOutcomes } from '../db/operation-outcomes.ts';
import { readCapacity } from '../db/queries/read-capacity.ts';
import { DEFAULT_BEAT_MS } from '../model/lease.ts';
import { readPackageVersion } from '../platform/host/build-info.ts';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { type Opened, openAll } from '../platform/host/opened.ts';
import { becomeControlPlane } from '../platform/identity/control-plane.ts';
import { startEndpoint } from '../platform/telemetry/endpoint.ts';
import { Metrics } from '../platform/telemetry/metrics.ts';
import {
  describeReadiness,
  descriptorNotes,
  type Readiness,
  readinessProblems,
} from '../platform/telemetry/readiness.ts';
import { installTracing } from '../platform/telemetry/tracing.ts';
import { connectTemporalClient, type TemporalClient } from '../temporal/client.ts';
import type { TemporalSettings } from '../temporal/connection.ts';
import { SURROUNDINGS, Surroundings } from '../temporal/surroundings.ts';
import { WorkflowStarter } from '../temporal/workflow-starter.ts';
import { writeProbes } from '../temporal/write-probes.ts';
import { type AuthenticationMode, addAccessHooks } from './access.ts';
import { closeApp, configureApp, urlOf } from './app.ts';
import { ConsoleFiles } from './console-files.ts';
import type { ApiApp, ApiContext, SledJoining } from './context.ts';
import { describeDocument } from './document.ts';
import { ChangeFeed } from './events/change-feed.ts';
import { addRateLimit, checkListening, DEFAULT_LIMITS, limitOptions, type RequestLimits } from './limits.ts';
import { Operations } from './operations.ts';
import { addKeyHook } from './request-key.ts';
import { addAccessTokenRoutes } from './routes/access-tokens.ts';
import { addActivityRoutes } from './routes/activity.ts';
import { addAffinityGroupRoutes } from './routes/affinity-groups.ts';
import { addAuditLogRoutes } from './routes/audit-log.ts';
import { addConsoleRoutes } from './routes/console.ts';
import { addDrainRoutes } from './routes/drains.ts';
import { addEventRoutes } from './routes/events.ts';
import { addHistoryRoutes } from './routes/history.ts';
import { addInstanceOperationRoutes } from './routes/instance-operations.ts';
import { addInstancePowerRoutes } from './routes/instance-power.ts';
import { addInstanceRecordRoutes } from './routes/instance-records.ts';
import { addLeaseRoutes, startBeating } from './routes/leases.ts';
import { addMigrationRoutes } from './routes/migration.ts';
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
  /** How long a call waits for its saga's outcome, in milliseconds; default 25000. A client may ask for less. */
  readonly waitMs?: number;
  /** How long registering a VMM may take, in milliseconds; default 15000. */
  readonly registerTimeoutMs?: number;
  /**
   * How often it writes down that sled agents can renew their leases, in milliseconds; default 1000. The shortest lease is
   * fifteen times that. 0 never does.
   */
  readonly leaseBeatMs?: number;
  /** How often it proves that it hears of the outcomes of operations, in milliseconds; default 5000. */
  readonly outcomeProofMs?: number;
  /** Where the console was built; by default, where the program's build puts it. */
  readonly consoleFolder?: string | undefined;
  /** `ip:port` where metrics are shown; nowhere when absent. */
  readonly metricsListen?: string | undefined;
  /** How callers are known; default `tokens`. `open` is only for a loopback address. */
  readonly authentication?: AuthenticationMode;
  /** Hosts, without a port, by which it may be called in the open mode, besides loopback addresses. */
  readonly hosts?: readonly string[] | undefined;
  /** The certificate and key, in PEM, by which it is known; without them it serves plain HTTP. */
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer } | undefined;
  /** Listens elsewhere than on a loopback address without TLS, which the operator must ask for. */
  readonly insecure?: boolean;
  readonly limits?: Partial<RequestLimits>;
  /** Where sleds join and connect with identities of their own; without it they can't. */
  readonly sledListener?: SledListenerOptions | undefined;
  /** Lets sleds be added whose agents use plain HTTP, without an identity; default false. */
  readonly plainSleds?: boolean;
  /** How often it looks at what it needs around it, in milliseconds; default 10000. */
  readonly lookEveryMs?: number | undefined;
}

export interface RunningApi {
  readonly url: string;
  /** Where the console is; `null` where it was not built. */
  readonly consoleUrl: string | null;
  /** Where its metrics are; `null` when nowhere. */
  readonly metricsUrl: string | null;
  /** Where sleds that have joined reach it; `null` when nowhere. */
  readonly sledUrl: string | null;
  /** Takes no new calls, answers those that wait, and closes every connection. */
  stop(): Promise<void>;
}

/** Shorter than the read time-out that nearly every proxy and load balancer has where nobody sets one: 60 s, some 30 s. */
export const DEFAULT_WAIT_MS = 25_000;
/** Which agent sends a report is not proved here; where every sled has an identity, none reports here. */
const UNPROVEN_SLED = { kind: 'sled', sledId: null } as const;

/**
 * Starts the API. Throws when the database or Temporal can't be reached, the port is taken, or workers of another database poll
 * this installation's queues; and for an address that it must not listen on: see {@link checkListening}. What it had opened is
 * closed then.
 */
export async function startApi(options: ApiOptions): Promise<RunningApi> {
  checkListening(options);
  return openAll((opened) => openApi(options, opened));
}

async function openApi(options: ApiOptions, opened: Opened): Promise<RunningApi> {
  const { log, sledListener, leaseBeatMs = DEFAULT_BEAT_MS } = options;
  opened.add(
    processDescriptors.hold((message) => log.warn(message)),
    (giveUpReserve) => giveUpReserve(),
  );
  const applicationName = 'mooring-api';
  const database = opened.add(openDatabase(options.databaseUrl, { maxConnections: 20, applicationName }), ({ close }) =>
    close(),
  );
  const { db } = database;
  await checkSessions(database, options.databaseUrl, (message) => log.warn(message));
  const outcomes = opened.add(
    new OperationOutcomes(
      { url: options.databaseUrl, db, log, applicationName: `${applicationName}-listener` },
      { proveEveryMs: options.outcomeProofMs },
    ),
    (listener) => listener.close(),
  );
  const tracing = opened.add(await installTracing('mooring-api'), (exporter) => exporter?.flush());
  const temporal = opened.add(
    await connectTemporalClient(options.temporal, db, log, {
      tracing: tracing !== null,
      distrustMs: options.lookEveryMs,
    }),
    ({ close }) => close(),
  );
  const surroundings = opened.add(
    await Surroundings.begin({ temporal, db, log, duties: null, everyMs: options.lookEveryMs }),
    (looks) => looks.stop(),
  );
  const metrics = new Metrics();
  metrics.watchCapacity(() => readCapacity(db));
  metrics.watchSurroundings(SURROUNDINGS, () => surroundings.missing.map(({ what }) => what));
  const identity = sledListener === undefined ? null : await becomeControlPlane(sledListener.authority);
  const directory =
    identity === null ? null : opened.add(await SledDirectory.open(db, identity), (open) => open.close());
  if (directory === null) await warnWithoutAuthority(db, log);
  const answers = opened.add(new SledAnswers(db, log), (written) => written.settled());
  const sleds = opened.add(
    new SledClient(
      (sled, call, answer, seconds, answered) => {
        metrics.sledCallSeconds.observe({ sled: sled.name, call, answer }, seconds);
        answers.observe(sled, answered);
      },
      directory,
      async () => (await temporal.installation()).id,
    ),
    (client) => client.close(),
  );
  let listening: RunningSledListener | null = null;
  const joining = (): SledJoining | null =>
    sledListener === undefined || listening === null ? null : { authority: sledListener.authority, url: listening.url };
  const context = createContext(options, { database, outcomes, temporal, metrics, sleds, joining });
  const probes = writeProbes(db, temporal.connection, options.temporal.namespace);
  const readiness = async (): Promise<Readiness> => ({
    problems: [
      ...(await readinessProblems(() => pingDatabase(db), temporal.connection, options.temporal.namespace, probes)),
      ...surroundings.problems,
    ],
    notes: [...surroundings.notes, ...descriptorNotes()],
  });

  const feed = new ChangeFeed({ source: context, listener: outcomes, log });
  metrics.watchEventStreams(() => feed.size);
  const app = opened.add(await createApp(options, context), closeApp);
  // Before what is under way is waited for: a stream never ends by itself.
  app.addHook('preClose', () => feed.close());
  addRoutes(app, context, leaseBeatMs);
  addEventRoutes(app, context, feed);
  const files = new ConsoleFiles(options.consoleFolder);
  addConsoleRoutes(app, files);
  addPlainRoutes(app, readiness);
  const endpoint =
    options.metricsListen === undefined
      ? null
      : opened.add(
          await startEndpoint({
            listen: options.metricsListen,
            metrics: () => metrics.registry.metrics(),
            readiness,
          }),
          (open) => open.stop(),
        );
  if (sledListener !== undefined && identity !== null)
    listening = opened.add(await startSledListener(sledListener, identity, context, leaseBeatMs), (open) =>
      open.stop(),
    );
  await app.listen({ host: options.host, port: options.port });
  opened.add(startBeating(context, leaseBeatMs), (stopBeating) => stopBeating());
  outcomes.start();
  const url = urlOf(app, options.tls === undefined ? 'http' : 'https', options.host);
  return {
    url,
    consoleUrl: files.isBuilt ? `${url}/` : null,
    metricsUrl: endpoint?.url ?? null,
    sledUrl: listening?.url ?? null,
    stop: () => opened.close(),
  };
}

/** What the endpoints work with; `joining` is asked each time, since the sled-facing listener starts after this. */
function createContext(
  options: ApiOptions,
  parts: {
    readonly database: OpenDatabase;
    readonly outcomes: OperationOutcomes;
    readonly temporal: TemporalClient;
    readonly metrics: Metrics;
    readonly sleds: SledClient;
    readonly joining: () => SledJoining | null;
  },
): ApiContext {
  const { db } = parts.database;
  const temporal = parts.temporal.client;
  const { temporalUiUrl } = options;
  const { namespace } = options.temporal;
  return {
    db,
    temporal,
    installation: async () => (await parts.temporal.installation()).id,
    workflows: new WorkflowStarter(temporal),
    operations: new Operations(temporal, db, parts.outcomes),
    sleds: parts.sleds,
    log: options.log,
    metrics: parts.metrics,
    get sledJoining() {
      return parts.joining();
    },
    plainSleds: options.plainSleds ?? false,
    waitLimitMs: options.waitMs ?? DEFAULT_WAIT_MS,
    registerTimeoutMs: options.registerTimeoutMs,
    webUiLink: (workflowId, runId) =>
      temporalUiUrl
        ? `${temporalUiUrl}/namespaces/${namespace}/workflows/${encodeURIComponent(workflowId)}/${runId}`
        : null,
  };
}

/** The HTTP server with all that holds for every endpoint: who may call it, how often, and how it describes itself. */
async function createApp(options: ApiOptions, { db, log, metrics }: ApiContext): Promise<ApiApp> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const app = fastify({
    forceCloseConnections: 'idle',
    ...limitOptions(limits, options.tls),
  }).withTypeProvider<ZodTypeProvider>() as ApiApp;
  addAccessHooks(app, {
    db,
    mode: options.authentication ?? 'tokens',
    hosts: options.hosts,
    sledOf: () => (options.plainSleds ? UNPROVEN_SLED : null),
    onRefused: (request, refusal) =>
      log.warn(
        { request_id: request.id, source_ip: request.ip, route: request.routeOptions.url, why: refusal.message },
        'a credential was refused',
      ),
    onAuditLost: (request, error) =>
      log.error({ err: error, request_id: request.id }, 'the audit record of a request could not be written'),
  });
  addKeyHook(app, db);
  await addRateLimit(app, limits);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Mooring',
        version: readPackageVersion(),
        description: 'Keeps virtual machines tied to physical servers.',
      },
      components: { securitySchemes: { token: { type: 'http', scheme: 'bearer', bearerFormat: 'mooring-token-…' } } },
      security: [{ token: [] }],
    },
    transform: jsonSchemaTransform,
    transformObject: (made) => describeDocument('openapiObject' in made ? made.openapiObject : made.swaggerObject),
  });
  configureApp(app, log, metrics, options.plainSleds === true && options.sledListener === undefined);
  return app;
}

/** Every endpoint of the API document. `leaseBeatMs` is how often this API beats. */
function addRoutes(app: ApiApp, context: ApiContext, leaseBeatMs: number): void {
  addInstanceRecordRoutes(app, context);
  addInstanceOperationRoutes(app, context);
  addInstancePowerRoutes(app, context);
  addHistoryRoutes(app, context);
  addMigrationRoutes(app, context);
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
  addAccessTokenRoutes(app, context);
  addAuditLogRoutes(app, context);
  addActivityRoutes(app, context);
  addLeaseRoutes(app, context, leaseBeatMs);
}

/** The endpoints beside it: the document itself, and for those who watch over the process. */
function addPlainRoutes(app: ApiApp, readiness: () => Promise<Readiness>): void {
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  app.get('/healthz', { schema: { hide: true } }, async () => 'ok\n');
  app.get('/readyz', { schema: { hide: true } }, async (_, reply) => {
    const { status, body } = describeReadiness(await readiness());
    return reply.status(status).send(body);
  });
}
