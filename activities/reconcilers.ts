/** One pass of each reconciling loop: find what stored state or a sled's inventory shows to be amiss, and set it right. */
import { type ReconcilerName, type ReconcilerPass, summarizePass } from '../model/reconcilers.ts';
import { restartInstances } from './auto-restart.ts';
import type { ActivityContext } from './context.ts';
import { judgeLeases } from './fencing.ts';
import { whileHeartbeating } from './heartbeats.ts';
import { instrumented } from './instrumented.ts';
import { reap } from './reaper.ts';
import { scanForUpdates } from './updater.ts';
import { watchSleds } from './watcher.ts';

export type ReconcilerActivities = ReturnType<typeof createReconcilerActivities>;

/** Makes the activities of the reconciling loops. */
export function createReconcilerActivities(context: ActivityContext) {
  async function pass<Name extends ReconcilerName>(
    name: Name,
    work: () => Promise<ReconcilerPass<Name>['found']>,
  ): Promise<ReconcilerPass<Name>> {
    const found = await whileHeartbeating(work);
    for (const [finding, what] of Object.entries(found)) {
      // Lists are what was amiss; a bare number only says how much was looked at.
      if (Array.isArray(what) && what.length > 0)
        context.metrics?.findings.inc({ reconciler: name, finding }, what.length);
    }
    return { summary: summarizePass(name, found), found };
  }
  return instrumented(context.metrics, {
    watchSleds: () => pass('watcher', () => watchSleds(context)),
    scanForUpdates: () => pass('updater', () => scanForUpdates(context)),
    reap: () => pass('reaper', () => reap(context)),
    judgeLeases: () => pass('fencing', () => judgeLeases(context)),
    restartInstances: () => pass('auto-restart', () => restartInstances(context.db, context.workflows)),
  });
}
