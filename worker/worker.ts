/** The worker: runs workflows and activities on both task queues, and sees to the schedules of the reconciling loops. */
import { OpenTelemetryPlugin } from '@temporalio/interceptors-opentelemetry';
import {
  type ActivityInterceptorsFactory,
  DefaultLogger,
  type InjectedSinks,
  type NativeConnection,
  Runtime,
  Worker,
  type WorkflowBundleWithSourceMap,
} from '@temporalio/worker';
import type { Sinks } from '@temporalio/workflow';
import type { Logger } from 'pino';
import { createDrainActivities } from '../activities/drain.ts';
import { createWatchActivities } from '../activities/migration-watch.ts';
import { createReconcilerActivities } from '../activities/reconcilers.ts';
import { createSagaActivities } from '../activities/sagas.ts';
import { SledAnswers } from '../activities/sled-answers.ts';
import { SledClient } from '../activities/sled-client.ts';
import { SledDirectory, warnWithoutAuthority } from '../activities/sled-directory.ts';
import { checkSessions } from '../db/check-sessions.ts';
import { openDatabase, pingDatabase } from '../db/connect.ts';
import { type Installation, readInstallation } from '../db/queries/read-installation.ts';
import type { ReconcilerName } from '../model/reconcilers.ts';
import { deploymentOf, queueOf, TASK_QUEUE, type TaskQueue, UPDATE_TASK_QUEUE } from '../model/workflow-names.ts';
import { freePort } from '../platform/host/child-process.ts';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { type Opened, openAll } from '../platform/host/opened.ts';
import type { Authority } from '../platform/identity/authority.ts';
import { becomeControlPlane } from '../platform/identity/control-plane.ts';
import { setting } from '../platform/settings.ts';
import { startEndpoint } from '../platform/telemetry/endpoint.ts';
import { logFields } from '../platform/telemetry/log-fields.ts';
import { Metrics } from '../platform/telemetry/metrics.ts';
import { descriptorNotes, readinessProblems } from '../platform/telemetry/readiness.ts';
import { installTracing } from '../platform/telemetry/tracing.ts';
import { connectTemporalClient } from '../temporal/client.ts';
import { explainUnreachable, type TemporalSettings } from '../temporal/connection.ts';
import { isTemporalUnavailable } from '../temporal/errors.ts';
import { connectNative } from '../temporal/native-connection.ts';
import { identityOf } from '../temporal/pollers.ts';
import type { SearchAttributes } from '../temporal/search-attributes.ts';
import { refuseForeign, SURROUNDINGS, Surroundings } from '../temporal/surroundings.ts';
import { WorkflowStarter } from '../temporal/workflow-starter.ts';
import { writeProbes } from '../temporal/write-probes.ts';
import { attributeNotices, createAttributeActivities } from './attribute-notices.ts';
import { readBuildId } from './build-id.ts';
import { TRACING_INTERCEPTORS, VERSIONING, workflowBundle } from './workflow-bundle.ts';

export interface WorkerOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
  readonly log: Logger;
  /** Whether this process works on the update saga's queue; default true. */
  readonly updates?: boolean;
  /** The build that this worker runs; by default it is read from the package and its repository. */
  readonly buildId?: string;
  /** The workflows to run instead of this package's; for tests of a roll-out. */
  readonly bundle?: WorkflowBundleWithSourceMap;
  /**
   * Temporal is this process's own, and no other worker will ever come: its workflows are not versioned, since the build
   * that began them is gone when another comes.
   */
  readonly alone?: boolean;
  /** How often every reconciling loop runs, in milliseconds, instead of each at its own pace; 0 leaves the schedules alone. */
  readonly reconcileEveryMs?: number;
  /** `ip:port` where metrics are shown, the SDK's among them, with `/healthz` and `/readyz`; nowhere when absent. */
  readonly metricsListen?: string | undefined;
  /** The installation's certificate authority, where sleds join with identities of their own. */
  readonly authority?: Authority | undefined;
  /** Reconciling loops whose schedule, where it is missing, is created switched off. */
  readonly reconcilersOff?: readonly ReconcilerName[];
  /** For tests alone. */
  readonly testInterceptors?: TestInterceptors;
  /** How long audit records are kept, in days; default 90. */
  readonly auditDays?: number | undefined;
  /** How long what is over (operations, VMMs, migrations, deleted instances) is kept, in days; default 30. */
  readonly retentionDays?: number | undefined;
  /** How often it looks at what it needs around it, in milliseconds; default 10000. */
  readonly lookEveryMs?: number | undefined;
}

/** How a test gets between Temporal and the steps. */
export interface TestInterceptors {
  /** Around every activity. */
  readonly activity?: ActivityInterceptorsFactory[];
  /** Files whose interceptors are bundled with the workflows. */
  readonly workflowModules?: string[];
  /** What those interceptors may call of the worker's process. */
  readonly sinks?: InjectedSinks<Sinks>;
}

export interface RunningWorker {
  readonly buildId: string;
  /** Lets this process work on the update saga's queue, or not. */
  setUpdates(on: boolean): Promise<void>;
  /** Where its metrics are; `null` when nowhere. */
  readonly metricsUrl: string | null;
  /** Rejects when the worker has ended by itself, which it does only by failing; resolves when it was stopped. */
  readonly ended: Promise<void>;
  /** Takes no new work, lets what runs finish, then closes every connection. */
  stop(): Promise<void>;
}

/** How long the SDK's own server of metrics may take, in milliseconds. */
const SDK_METRICS_MS = 5_000;

/** Called with each line of the SDK's core, which knows no other way to tell why the server refused a task. */
const coreListeners = new Set<(line: string) => void>();

/**
 * Makes the SDK's log lines ours, those of its core too (below warnings they are left out), and has it show its metrics at
 * `sdkMetricsListen` (`ip:port`); the first call of a process decides.
 */
export function installRuntime(log: Logger, sdkMetricsListen?: string): void {
  try {
    Runtime.install({
      telemetryOptions: {
        // Without this its core writes lines of its own, coloured, to the console.
        logging: { forward: {}, filter: { core: 'WARN', other: 'ERROR' } },
        ...(sdkMetricsListen === undefined
          ? {}
          : {
              metrics: {
                prometheus: {
                  bindAddress: sdkMetricsListen,
                  countersTotalSuffix: true,
                  unitSuffix: true,
                  useSecondsForDurations: true,
                },
              },
            }),
      },
      logger: new DefaultLogger('INFO', ({ level, message, meta }) => {
        // Every step that fails has a line of ours, with its reason and what follows (activities/instrumented.ts).
        if (message === 'Activity failed') return;
        const fields = logFields(meta ?? {});
        if (meta?.sdkComponent === 'core') {
          const line = `${message} ${JSON.stringify(fields)}`;
          for (const listener of coreListeners) listener(line);
        }
        if (level === 'ERROR') log.error(fields, message);
        else if (level === 'WARN') log.warn(fields, message);
        // What workflows and activities log themselves is kept; what the SDK logs below a warning is not worth a line.
        else if (meta?.sdkComponent === 'workflow' || meta?.sdkComponent === 'activity') log.info(fields, message);
      }),
      // Signals are the process's own: it stops its workers itself.
      shutdownSignals: [],
    });
  } catch {
    // Installed before, by another worker of this process.
  }
}

/**
 * Starts a worker. Throws when the database or Temporal can't be reached or has no such namespace, and when workers of another
 * database poll its queues; what it had opened is closed then.
 */
export function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  return openAll((opened) => openWorker(options, opened));
}

async function openWorker(options: WorkerOptions, opened: Opened): Promise<RunningWorker> {
  // The SDK shows its metrics by a server of its own: ours passes them on, so that there is one place to scrape.
  const sdkMetrics = options.metricsListen === undefined ? undefined : `127.0.0.1:${await freePort()}`;
  installRuntime(options.log, sdkMetrics);
  opened.add(
    processDescriptors.hold((message) => options.log.warn(message)),
    (giveUpReserve) => giveUpReserve(),
  );
  const metrics = new Metrics();
  const database = opened.add(
    openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-worker' }),
    ({ close }) => close(),
  );
  await checkSessions(database, options.databaseUrl, (message) => options.log.warn(message));
  const directory =
    options.authority === undefined
      ? null
      : opened.add(await SledDirectory.open(database.db, await becomeControlPlane(options.authority)), (open) =>
          open.close(),
        );
  if (directory === null) await warnWithoutAuthority(database.db, options.log);
  const answers = opened.add(new SledAnswers(database.db, options.log), (written) => written.settled());
  const { id } = await readInstallation(database.db);
  const sleds = opened.add(
    new SledClient(
      (sled, call, answer, seconds, answered) => {
        metrics.sledCallSeconds.observe({ sled: sled.name, call, answer }, seconds);
        answers.observe(sled, answered);
      },
      directory,
      async () => id,
    ),
    (client) => client.close(),
  );
  const tracing = opened.add(await installTracing('mooring-worker'), (exporter) => exporter?.flush());
  const unreachable = (error: unknown): never => {
    throw explainUnreachable(error, options.temporal);
  };
  const native = opened.add(await connectNative(options.temporal.connection), (connection) => connection.close());
  const connected = opened.add(
    await connectTemporalClient(options.temporal, database.db, options.log, {
      tracing: tracing !== null,
      distrustMs: options.lookEveryMs,
    }),
    ({ close }) => close(),
  );
  const { searchAttributes } = connected;
  await refuseForeign(connected).catch((error: unknown) => {
    if (isTemporalUnavailable(error)) unreachable(error);
    throw error;
  });
  const workflows = new WorkflowStarter(connected.client);
  const { auditDays, retentionDays } = options;
  const context = { db: database.db, sleds, workflows, metrics, auditDays, retentionDays };
  const versioned = setting('MOORING_WORKER_VERSIONING') !== 'off' && !options.alone;
  const installation = await connected.installation();
  const { common, buildId } = await commonOptions(options, native, versioned, tracing, installation, searchAttributes);
  const queue = (name: TaskQueue) => queueOf(installation.id, name);
  const sagas = { ...createSagaActivities(context), ...createAttributeActivities(searchAttributes) };
  const listener = (line: string) => {
    if (line.includes('BadSearchAttributes')) searchAttributes.refused();
  };
  coreListeners.add(opened.add(listener, () => coreListeners.delete(listener)));
  const main = await Worker.create({
    ...common,
    taskQueue: queue(TASK_QUEUE),
    activities: {
      ...sagas,
      ...createReconcilerActivities(context),
      ...createDrainActivities(context),
      ...createWatchActivities(context),
    },
    maxConcurrentActivityTaskExecutions: 200,
  }).catch(unreachable);
  const mainRun = main.run();
  const updates = new UpdateWorker(() =>
    Worker.create({ ...common, taskQueue: queue(UPDATE_TASK_QUEUE), activities: sagas }),
  );
  // What fails is thrown to who waits for the end: until somebody does, it is nobody's.
  const ended = Promise.race([mainRun, updates.failed]);
  ended.catch(() => {});
  opened.add(main, async () => {
    if (main.getState() === 'RUNNING') main.shutdown();
    await Promise.allSettled([updates.set(false), mainRun]);
  });
  const begin = async () => {
    if (options.updates ?? true) await updates.set(true);
    return Surroundings.begin({
      temporal: connected,
      db: database.db,
      log: options.log,
      everyMs: options.lookEveryMs,
      duties: {
        buildId: versioned ? buildId : null,
        schedules:
          options.reconcileEveryMs === 0 ? null : { everyMs: options.reconcileEveryMs, off: options.reconcilersOff },
      },
    });
  };
  // A worker whose polls are refused ends, and would keep the looks waiting in vain.
  const surroundings = opened.add(
    await Promise.race([
      begin(),
      ended.then(() => Promise.reject(new Error('the worker ended while it started')), unreachable),
    ]),
    (looks) => looks.stop(),
  );
  metrics.watchSurroundings(SURROUNDINGS, () => surroundings.missing.map(({ what }) => what));
  metrics.watchLoops(() => surroundings.loops);
  const probes = writeProbes(database.db, connected.connection, options.temporal.namespace);
  const endpoint =
    options.metricsListen === undefined
      ? null
      : opened.add(
          await startEndpoint({
            listen: options.metricsListen,
            metrics: async () => {
              const fromSdk = await fetch(`http://${sdkMetrics}/metrics`, {
                signal: AbortSignal.timeout(SDK_METRICS_MS),
              }).then((response) => response.text());
              return `${await metrics.registry.metrics()}\n${fromSdk}`;
            },
            readiness: async () => ({
              problems: [
                ...(main.getState() === 'RUNNING' ? [] : [`the worker is ${main.getState().toLowerCase()}`]),
                ...(await readinessProblems(
                  () => pingDatabase(database.db),
                  connected.connection,
                  options.temporal.namespace,
                  probes,
                )),
                ...surroundings.problems,
              ],
              notes: [...surroundings.notes, ...descriptorNotes()],
            }),
          }),
          (open) => open.stop(),
        );

  return {
    buildId,
    setUpdates: (on) => updates.set(on),
    metricsUrl: endpoint?.url ?? null,
    ended,
    stop: () => opened.close(),
  };
}

/** What the workers of both queues have in common, and the build that they run. */
async function commonOptions(
  options: WorkerOptions,
  connection: NativeConnection,
  versioned: boolean,
  tracing: Awaited<ReturnType<typeof installTracing>>,
  installation: Installation,
  searchAttributes: SearchAttributes,
) {
  const { testInterceptors } = options;
  const activity: ActivityInterceptorsFactory[] = [
    attributeNotices(searchAttributes),
    ...(testInterceptors?.activity ?? []),
  ];
  const bundle =
    options.bundle ??
    (await workflowBundle([
      ...(versioned ? [VERSIONING] : []),
      ...(tracing === null ? [] : [TRACING_INTERCEPTORS]),
      ...(testInterceptors?.workflowModules ?? []),
    ]));
  const buildId = options.buildId ?? (await readBuildId(process.env, bundle.code));
  const common = {
    connection,
    namespace: options.temporal.namespace,
    identity: identityOf(installation),
    workflowBundle: bundle,
    plugins: tracing === null ? [] : [new OpenTelemetryPlugin(tracing)],
    interceptors: { activity },
    sinks: testInterceptors?.sinks ?? {},
    // A saga waits within its workflow task for PostgreSQL and its sleds: what waits must not keep others from beginning.
    maxConcurrentWorkflowTaskExecutions: 100,
    shutdownGraceTime: '10s',
    // What ignores its cancellation is given up: another worker tries the step again.
    shutdownForceTime: '20s',
    ...(versioned
      ? {
          workerDeploymentOptions: {
            version: { deploymentName: deploymentOf(installation.id), buildId },
            useWorkerVersioning: true as const,
            defaultVersioningBehavior: 'PINNED' as const,
          },
        }
      : {}),
  } as const;
  return { common, buildId };
}

/** The worker of the update saga's queue, which is switched on and off. */
class UpdateWorker {
  readonly #create: () => Promise<Worker>;
  #running: { readonly worker: Worker; readonly run: Promise<void> } | null = null;
  #fail: (error: unknown) => void = () => {};
  /** Rejects when it has ended by itself. */
  readonly failed = new Promise<never>((_, reject) => {
    this.#fail = reject;
  });

  constructor(create: () => Promise<Worker>) {
    this.#create = create;
    this.failed.catch(() => {});
  }

  /** Lets the process work on the queue, or not; off when nothing of it runs any more. */
  async set(on: boolean): Promise<void> {
    if (on === (this.#running !== null)) return;
    if (this.#running === null) {
      const worker = await this.#create();
      const run = worker.run();
      run.catch(this.#fail);
      this.#running = { worker, run };
      return;
    }
    const { worker, run } = this.#running;
    this.#running = null;
    if (worker.getState() === 'RUNNING') worker.shutdown();
    await run;
  }
}
