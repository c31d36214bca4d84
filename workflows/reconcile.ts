/** The loops that heal what a lost message or process left: run by Temporal Schedules, each run one pass. */
import { proxyActivities } from '@temporalio/workflow';
import type { ReconcilerActivities } from '../activities/reconcilers.ts';

const { watchSleds, scanForUpdates } = proxyActivities<ReconcilerActivities>({
  startToCloseTimeout: '2m',
  heartbeatTimeout: '15s',
  retry: { maximumAttempts: 3 },
});

/** Polls every sled: only its authoritative answers fail a VMM, and what it should not have is unregistered. */
export async function watcher() {
  return watchSleds();
}

/** Signals every instance whose stored state needs an update, and finds sagas that were cut off. */
export async function updaterScan() {
  return scanForUpdates();
}
