/** One pass of each reconciling loop: find what stored state or a sled's inventory shows to be amiss, and set it right. */
import { type ReconcilerName, type ReconcilerPass, summarizePass } from '../model/reconcilers.ts';
import type { ActivityContext } from './activities.ts';
import { restartInstances } from './auto-restart.ts';
import { classifyFailure } from './failures.ts';
import { whileHeartbeating } from './heartbeats.ts';
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
    try {
      const found = await whileHeartbeating(work);
      return { summary: summarizePass(name, found), found };
    } catch (error) {
      throw classifyFailure(error);
    }
  }
  return {
    watchSleds: () => pass('watcher', () => watchSleds(context)),
    scanForUpdates: () => pass('updater', () => scanForUpdates(context)),
    reap: () => pass('reaper', () => reap(context.db)),
    restartInstances: () => pass('auto-restart', () => restartInstances(context.db, context.workflows)),
  };
}
