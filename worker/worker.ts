/** The worker: runs workflows and activities on both task queues, and sees to the schedules of the reconciling loops. */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { OpenTelemetryPlugin } from '@temporalio/interceptors-opentelemetry';
import {
  type ActivityInterceptorsFactory,
  bundleWorkflowCode,
  DefaultLogger,
  type InjectedSinks,
  NativeConnection,
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
import { openDatabase, pingDatabase } from '../db/connect.ts';
import type { ReconcilerName } from '../model/reconcilers.ts';
import { TASK_QUEUE, UPDATE_TASK_QUEUE } from '../model/workflow-names.ts';
import { freePort } from '../platform/host/child-process.ts';
import type { Authority } from '../platform/identity/authority.ts';
import { becomeControlPlane } from '../platform/identity/control-plane.ts';
import { startEndpoint } from '../platform/telemetry/endpoint.ts';
import { logFields } from '../platform/telemetry/log-fields.ts';
import { Metrics } from '../platform/telemetry/metrics.ts';
import { readinessProblems } from '../platform/telemetry/readiness.ts';
import { installTracing } from '../platform/telemetry/tracing.ts';
import { connectTemporalClient } from '../temporal/client.ts';
import type { TemporalSettings } from '../temporal/connection.ts';
import { DEPLOYMENT_NAME, settleBuild } from '../temporal/deployment.ts';
import { ensureSchedules } from '../temporal/schedules.ts';
import { WorkflowStarter } from '../temporal/workflow-starter.ts';
import { readBuildId } from './build-id.ts';

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
  /** Resolves when the worker has ended by itself, which it does only by failing. */
  readonly ended: Promise<void>;
  /** Takes no new work, lets what runs finish, then closes every connection. */
  stop(): Promise<void>;
}

const TRACING_INTERCEPTORS = createRequire(import.meta.url).resolve(
  '@temporalio/interceptors-opentelemetry/lib/workflow-interceptors',
);
/** Goes into the bundle of a worker that is versioned. */
export const VERSIONING = fileURLToPath(new URL('../workflows/versioning.ts', import.meta.url));
const INTERCEPTORS = fileURLToPath(new URL('../workflows/interceptors.ts', import.meta.url));

const bundles = new Map<string, Promise<WorkflowBundleWithSourceMap>>();

/** The workflow code as one bundle, with the interceptors of more modules than its own; made once a process. */
export function workflowBundle(interceptorModules: readonly string[] = []): Promise<WorkflowBundleWithSourceMap> {
  const key = interceptorModules.join('\n');
  const made =
    bundles.get(key) ??
    bundleWorkflows(fileURLToPath(new URL('../workflows/index.ts', import.meta.url)), interceptorModules);
  bundles.set(key, made);
  return made;
}

/** Bundles the workflows that a module exports, with the interceptors that tell their story. */
export function bundleWorkflows(
  workflowsPath: string,
  interceptorModules: readonly string[] = [],
): Promise<WorkflowBundleWithSourceMap> {
  return bundleWorkflowCode({
    workflowsPath,
    // Evaluated once a worker and frozen, instead of anew for each workflow: none of them keeps anything between calls.
    preloadModules: [INTERCEPTORS, workflowsPath, ...interceptorModules.filter((module) => module === VERSIONING)],
    workflowInterceptorModules: [INTERCEPTORS, ...interceptorModules],
    logger: new DefaultLogger('WARN'),
  });
}

/**
 * Makes the SDK's log lines ours (its own below warnings are left out), and has it show its metrics at `sdkMetricsListen` (`ip:port`); the first
 * call of a process decides.
 */
export function installRuntime(log: Logger, sdkMetricsListen?: string): void {
  try {
    Runtime.install({
      ...(sdkMetricsListen === undefined
        ? {}
        : {
            telemetryOptions: {
              metrics: {
                prometheus: {
                  bindAddress: sdkMetricsListen,
                  countersTotalSuffix: true,
                  unitSuffix: true,
                  useSecondsForDurations: true,
                },
              },
            },
          }),
      logger: new DefaultLogger('INFO', ({ level, message, meta }) => {
        // Every step that fails has a line of ours, with its reason and what follows (activities/instrumented.ts).
        if (message === 'Activity failed') return;
        const fields = logFields(meta ?? {});
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

/** Starts a worker. Throws when the database or Temporal can't be reached. */
export async function startWorker(options: WorkerOptions): Promise<RunningWorker> {
  // The SDK shows its metrics by a server of its own: ours passes them on, so that there is one place to scrape.
  const sdkMetrics = options.metricsListen === undefined ? undefined : `127.0.0.1:${await freePort()}`;
  installRuntime(options.log, sdkMetrics);
  const metrics = new Metrics();
  const database = openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-worker' });
  const directory =
    options.authority === undefined
      ? null
      : await SledDirectory.open(database.db, await becomeControlPlane(options.authority));
  if (directory === null) await warnWithoutAuthority(database.db, options.log);
  const answers = new SledAnswers(database.db, options.log);
  const sleds = new SledClient((sled, call, answer, seconds, answered) => {
    metrics.sledCallSeconds.observe({ sled: sled.name, call, answer }, seconds);
    answers.observe(sled, answered);
  }, directory);
  const tracing = await installTracing('mooring-worker');
  const native = await NativeConnection.connect(options.temporal.connection);
  const connected = await connectTemporalClient(options.temporal, database.db, options.log, {
    tracing: tracing !== null,
  });
  const workflows = new WorkflowStarter(connected.client);
  const { auditDays, retentionDays } = options;
  const context = { db: database.db, sleds, workflows, metrics, auditDays, retentionDays };
  const versioned = process.env.MOORING_WORKER_VERSIONING !== 'off' && !options.alone;
  const { common, buildId } = await commonOptions(options, native, versioned, tracing);
  const sagas = createSagaActivities(context);
  const main = await Worker.create({
    ...common,
    taskQueue: TASK_QUEUE,
    activities: {
      ...sagas,
      ...createReconcilerActivities(context),
      ...createDrainActivities(context),
      ...createWatchActivities(context),
    },
    maxConcurrentActivityTaskExecutions: 200,
  });
  const mainRun = main.run();
  const updates = new UpdateWorker(() => Worker.create({ ...common, taskQueue: UPDATE_TASK_QUEUE, activities: sagas }));
  if (options.updates ?? true) await updates.set(true);
  if (versioned) await settleBuild(connected.client, buildId, options.log);
  if (options.reconcileEveryMs !== 0)
    await ensureSchedules(connected.client, {
      everyMs: options.reconcileEveryMs,
      off: options.reconcilersOff,
      searchAttributes: connected.searchAttributes,
    });
  const endpoint =
    options.metricsListen === undefined
      ? null
      : await startEndpoint({
          listen: options.metricsListen,
          metrics: async () => {
            const fromSdk = await fetch(`http://${sdkMetrics}/metrics`).then((response) => response.text());
            return `${await metrics.registry.metrics()}\n${fromSdk}`;
          },
          problems: async () => [
            ...(main.getState() === 'RUNNING' ? [] : [`the worker is ${main.getState().toLowerCase()}`]),
            ...(await readinessProblems(() => pingDatabase(database.db), connected.connection)),
          ],
        });

  return {
    buildId,
    setUpdates: (on) => updates.set(on),
    metricsUrl: endpoint?.url ?? null,
    ended: mainRun,
    async stop() {
      await endpoint?.stop();
      if (main.getState() === 'RUNNING') main.shutdown();
      await Promise.allSettled([updates.set(false), mainRun]);
      directory?.close();
      await answers.settled();
      await Promise.allSettled([native.close(), connected.close(), tracing?.flush(), database.close(), sleds.close()]);
    },
  };
}

/** What the workers of both queues have in common, and the build that they run. */
async function commonOptions(
  options: WorkerOptions,
  connection: NativeConnection,
  versioned: boolean,
  tracing: Awaited<ReturnType<typeof installTracing>>,
) {
  const { testInterceptors } = options;
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
    workflowBundle: bundle,
    plugins: tracing === null ? [] : [new OpenTelemetryPlugin(tracing)],
    interceptors: { activity: testInterceptors?.activity ?? [] },
    sinks: testInterceptors?.sinks ?? {},
    // A saga waits within its workflow task for PostgreSQL and its sleds: what waits must not keep others from beginning.
    maxConcurrentWorkflowTaskExecutions: 100,
    shutdownGraceTime: '10s',
    // What ignores its cancellation is given up: another worker tries the step again.
    shutdownForceTime: '20s',
    ...(versioned
      ? {
          workerDeploymentOptions: {
            version: { deploymentName: DEPLOYMENT_NAME, buildId },
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

  constructor(create: () => Promise<Worker>) {
    this.#create = create;
  }

  /** Lets the process work on the queue, or not; off when nothing of it runs any more. */
  async set(on: boolean): Promise<void> {
    if (on === (this.#running !== null)) return;
    if (this.#running === null) {
      const worker = await this.#create();
      this.#running = { worker, run: worker.run() };
      return;
    }
    const { worker, run } = this.#running;
    this.#running = null;
    worker.shutdown();
    await run;
  }
}
