/** The worker: runs workflows and activities on both task queues, and sees to the schedules of the reconciling loops. */
import { fileURLToPath } from 'node:url';
import { Client, Connection } from '@temporalio/client';
import {
  type ActivityInterceptorsFactory,
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
import { ensureSchedules } from './schedules.ts';
import type { TemporalSettings } from './temporal-connection.ts';

export interface WorkerOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
  readonly log: Logger;
  /** Whether this process works on the update saga's queue; default true. */
  readonly updates?: boolean;
  /** How often the reconciling loops run, in milliseconds; 0 leaves the schedules alone. Default 5000. */
  readonly reconcileEveryMs?: number;
  /** For tests alone. */
  readonly testInterceptors?: TestInterceptors;
}

/** How a test gets between Temporal and the steps. */
export interface TestInterceptors {
  /** Around every activity. */
  readonly activity?: ActivityInterceptorsFactory[];
  /** Files whose interceptors are bundled with the workflows. */
  readonly workflowModules?: string[];
}

export interface RunningWorker {
  /** Lets this process work on the update saga's queue, or not. */
  setUpdates(on: boolean): Promise<void>;
  /** Resolves when the worker has ended by itself, which it does only by failing. */
  readonly ended: Promise<void>;
  /** Takes no new work, lets what runs finish, then closes every connection. */
  stop(): Promise<void>;
}

const bundles = new Map<string, Promise<WorkflowBundleWithSourceMap>>();

/** The workflow code as one bundle, with the interceptors of `interceptorModules`; made once a process. */
export function workflowBundle(interceptorModules: string[] = []): Promise<WorkflowBundleWithSourceMap> {
  const key = interceptorModules.join('\n');
  const made =
    bundles.get(key) ??
    bundleWorkflowCode({
      workflowsPath: fileURLToPath(new URL('../workflows/index.ts', import.meta.url)),
      workflowInterceptorModules: interceptorModules,
      logger: new DefaultLogger('WARN'),
    });
  bundles.set(key, made);
  return made;
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
  const clientConnection = await Connection.connect(settings);
  const native = await NativeConnection.connect(settings);
  const client = new Client({ connection: clientConnection, namespace });
  const context = { db: database.db, sleds, workflows: new WorkflowStarter(client) };
  const control = createControlActivities(context);
  const common = {
    connection: native,
    namespace,
    workflowBundle: await workflowBundle(options.testInterceptors?.workflowModules),
    interceptors: { activity: options.testInterceptors?.activity ?? [] },
    shutdownGraceTime: '10s',
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
  const everyMs = options.reconcileEveryMs ?? 5_000;
  if (everyMs > 0) await ensureSchedules(client, everyMs);

  return {
    setUpdates,
    ended: mainRun,
    async stop() {
      if (main.getState() === 'RUNNING') main.shutdown();
      await Promise.allSettled([setUpdates(false), mainRun]);
      await Promise.allSettled([native.close(), clientConnection.close(), database.close(), sleds.close()]);
    },
  };
}
