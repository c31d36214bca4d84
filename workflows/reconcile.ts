/**
 * The loops that heal what a lost message or process left: run by Temporal Schedules, and by hand. Each run is one pass,
 * which may run beside another: everything that it does can be done twice.
 */
import { proxyActivities, setCurrentDetails } from '@temporalio/workflow';
import type { ReconcilerActivities } from '../activities/reconcilers.ts';
import type { ReconcilerName, ReconcilerPass } from '../model/reconcilers.ts';

const passes = proxyActivities<ReconcilerActivities>({
  startToCloseTimeout: '2m',
  // A pass that is given up is followed by the next one.
  heartbeatTimeout: '15s',
  retry: { maximumAttempts: 3 },
});

async function showSummary<Name extends ReconcilerName>(
  pass: Promise<ReconcilerPass<Name>>,
): Promise<ReconcilerPass<Name>> {
  const done = await pass;
  setCurrentDetails(done.summary);
  return done;
}

/** Polls every sled: only its authoritative answers fail a VMM, and what it should not have is unregistered. */
export async function watcher() {
  return showSummary(passes.watchSleds());
}

/** Signals every instance whose stored state needs an update, and finds sagas that were cut off. */
export async function updaterScan() {
  return showSummary(passes.scanForUpdates());
}

/** Deletes abandoned VMM rows and orphan reservations and charges. */
export async function reaper() {
  return showSummary(passes.reap());
}

/** Declares sleds dead whose lease has lapsed, and takes back those that prove what they run. */
export async function fencing() {
  return showSummary(passes.judgeLeases());
}

/** Starts instances again that failed and are meant to run. */
export async function autoRestart() {
  return showSummary(passes.restartInstances());
}
