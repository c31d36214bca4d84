import type { ReconcilerName } from './reconcilers.ts';

/**
 * Names that the processes share on a Temporal namespace: task queues, workflow types and workflow ids.
 *
 * Several installations may share one namespace: whatever is not named by an id of its own (an instance's, a VMM's, a sled's)
 * carries the installation's id. The client of an installation (`temporal/client.ts`) starts its workflows on its own queues.
 */
export const TASK_QUEUE = 'mooring';
/** The update saga has a queue of its own: it can be held back, or given workers of its own. */
export const UPDATE_TASK_QUEUE = 'mooring-update';
export type TaskQueue = typeof TASK_QUEUE | typeof UPDATE_TASK_QUEUE;
export const TASK_QUEUES: readonly TaskQueue[] = [TASK_QUEUE, UPDATE_TASK_QUEUE];

/** The name on the namespace of an installation's queue. A name that is none of ours stays as it is. */
export function queueOf(installation: string, queue: string): string {
  return TASK_QUEUES.some((known) => known === queue) ? `${queue}-${installation}` : queue;
}

/** Whose a queue is, by its name; `null` for one that is no installation's. An id is as the database makes it. */
export function installationOf(queue: string): string | null {
  if (TASK_QUEUES.some((known) => known === queue)) return null;
  const [, installation] = /^mooring(?:-update)?-([0-9a-z]{1,32})$/.exec(queue) ?? [];
  return installation ?? null;
}

/** The worker deployment of an installation. */
export function deploymentOf(installation: string): string {
  return `${DEPLOYMENT_PREFIX}${installation}`;
}
/** What the names of all installations' deployments begin with. */
export const DEPLOYMENT_PREFIX = 'mooring-';

/** The schedule of a reconciling loop, and the beginning of the ids of its workflows. */
export function scheduleOf(installation: string, name: ReconcilerName): string {
  return `${name}-${installation}`;
}

/** The workflow type of each reconciling loop. */
export const RECONCILER_WORKFLOWS = {
  watcher: 'watcher',
  updater: 'updaterScan',
  reaper: 'reaper',
  fencing: 'fencing',
  'auto-restart': 'autoRestart',
} as const satisfies Record<ReconcilerName, string>;

/** Workflow ids are the mutual exclusion: one running workflow of a kind per instance or VMM. */
export const workflowIds = {
  start: (instanceId: string) => `instance-start/${instanceId}`,
  migrate: (instanceId: string) => `instance-migrate/${instanceId}`,
  watchMigration: (migrationId: string) => `migration-watch/${migrationId}`,
  update: (instanceId: string) => `instance-update/${instanceId}`,
  stop: (instanceId: string) => `instance-stop/${instanceId}`,
  unwind: (vmmId: string) => `vmm-unwind/${vmmId}`,
  unregister: (vmmId: string) => `vmm-unregister/${vmmId}`,
  drain: (sledId: string) => `sled-drain/${sledId}`,
  /** A pass that was asked for by hand. */
  reconcileOnce: (installation: string, name: ReconcilerName) => `${scheduleOf(installation, name)}/by-hand`,
} as const;
