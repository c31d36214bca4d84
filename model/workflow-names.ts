import type { ReconcilerName } from './reconcilers.ts';

/** Names that the processes share on a Temporal namespace: task queues, workflow types and workflow ids. */
export const TASK_QUEUE = 'mooring';
/** The update saga has a queue of its own: it can be held back, or given workers of its own. */
export const UPDATE_TASK_QUEUE = 'mooring-update';

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
  reconcileOnce: (name: ReconcilerName) => `${name}/by-hand`,
} as const;
