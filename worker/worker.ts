/** The worker: runs workflows and activities on both task queues, and sees to the schedules of the reconciling loops. */
import { fileURLToPath } from 'node:url';
import {
  bundleWorkflowCode,
  DefaultLogger,
  NativeConnection,
  Runtime,
  Worker,
  type WorkflowBundleWithSourceMap,
} from '@temporalio/worker';
import type { Logger } from 'pino';
import { createControlActivities } from '../activities/activities.ts';
import { createReconcilerActivities } from '../activities/reconcilers.ts';
import { SledClient } from '../activities/sled-client.ts';
import { WorkflowStarter } from '../activities/workflow-starter.ts';
import { openDatabase } from '../db/connect.ts';
import { TASK_QUEUE, UPDATE_TASK_QUEUE } from '../model/workflow-names.ts';
import { readBuildId } from './build-id.ts';
import { DEPLOYMENT_NAME, settleBuild } from './deployment.ts';
import { ensureSchedules } from './schedules.ts';
import { connectTemporalClient } from './temporal-client.ts';
import type { TemporalSettings } from './temporal-connection.ts';

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
   * Temporal is this process's own, and no other worker will ever come: its build becomes current by itself, and every
   * workflow goes over to it, since the build that began it is gone.
   */
  readonly alone?: boolean;
  /** How often the reconciling loops run, in milliseconds; 0 leaves the schedules alone. Default 5000. */
  readonly reconcileEveryMs?: number;
}

export interface RunningWorker {
  readonly buildId: string;
  /** Lets this process work on the update saga's queue, or not. */
  setUpdates(on: boolean): Promise<void>;
  /** Resolves when the worker has ended by itself, which it does only by failing. */
  readonly ended: Promise<void>;
  /** Takes no new work, lets what runs finish, then closes every connection. */
  stop(): Promise<void>;
}

const INTERCEPTORS = fileURLToPath(new URL('../workflows/interceptors.ts', import.meta.url));

let bundle: Promise<WorkflowBundleWithSourceMap> | undefined;

/** The workflow code as one bundle; made once a process. */
export function workflowBundle(): Promise<WorkflowBundleWithSourceMap> {
  bundle ??= bundleWorkflows(fileURLToPath(new URL('../workflows/index.ts', import.meta.url)));
  return bundle;
}

/** Bundles the workflows that a module exports, with the interceptors that tell their story. */
export function bundleWorkflows(workflowsPath: string): Promise<WorkflowBundleWithSourceMap> {
  return bundleWorkflowCode({
    workflowsPath,
    workflowInterceptorModules: [INTERCEPTORS],
    logger: new DefaultLogger('WARN'),
  });
}

/** Silences the SDK's own log lines below warnings; the first call of a process decides. */
export function installRuntime(log: Logger): void {
  try {
    Runtime.install({
      logger: new DefaultLogger('WARN', ({ level, message, meta }) => {
        const { error: _, ...rest } = meta ?? {};
        if (level === 'ERROR') log.error(rest, message);
        else log.warn(rest, message);
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
  installRuntime(options.log);
  const { connection: settings, namespace } = options.temporal;
  const database = openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-worker' });
  const sleds = new SledClient();
  const native = await NativeConnection.connect(settings);
  const { client, close: closeClient } = await connectTemporalClient(options.temporal, database.db, options.log);
  const context = { db: database.db, sleds, workflows: new WorkflowStarter(client) };
  const control = createControlActivities(context);
  const workflows = options.bundle ?? (await workflowBundle());
  const versioned = process.env.MOORING_WORKER_VERSIONING !== 'off';
  const buildId = options.buildId ?? (await readBuildId(process.env, workflows.code));
  const common = {
    connection: native,
    namespace,
    workflowBundle: workflows,
    shutdownGraceTime: '10s',
    ...(versioned
      ? {
          workerDeploymentOptions: {
            version: { deploymentName: DEPLOYMENT_NAME, buildId },
            useWorkerVersioning: true as const,
            defaultVersioningBehavior: options.alone ? ('AUTO_UPGRADE' as const) : ('PINNED' as const),
          },
        }
      : {}),
  } as const;

  const main = await Worker.create({
    ...common,
    taskQueue: TASK_QUEUE,
    activities: { ...control, ...createReconcilerActivities(context) },
    maxConcurrentActivityTaskExecutions: 200,
    maxConcurrentWorkflowTaskExecutions: 40,
  });
  let updates: { worker: Worker; run: Promise<void> } | null = null;
  const mainRun = main.run();

  async function setUpdates(on: boolean): Promise<void> {
    if (on === (updates !== null)) return;
    if (updates !== null) {
      const { worker, run } = updates;
      updates = null;
      worker.shutdown();
      await run;
      return;
    }
    const worker = await Worker.create({ ...common, taskQueue: UPDATE_TASK_QUEUE, activities: control });
    updates = { worker, run: worker.run() };
  }
  if (options.updates ?? true) await setUpdates(true);
  if (versioned) await settleBuild(client, buildId, options.alone ?? false, options.log);
  const everyMs = options.reconcileEveryMs ?? 5_000;
  if (everyMs > 0) await ensureSchedules(client, everyMs);

  return {
    buildId,
    setUpdates,
    ended: mainRun,
    async stop() {
      if (main.getState() === 'RUNNING') main.shutdown();
      await Promise.allSettled([setUpdates(false), mainRun]);
      await Promise.allSettled([native.close(), closeClient(), database.close(), sleds.close()]);
    },
  };
}
