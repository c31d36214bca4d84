/** The schedules of the reconciling loops: created by every worker, seen, paused and run by hand by operators. */
import { type Client, ScheduleAlreadyRunning, ScheduleNotFoundError, ScheduleOverlapPolicy } from '@temporalio/client';
import { RECONCILER_PURPOSE, RECONCILERS, type ReconcilerName } from '../model/reconcilers.ts';
import { RECONCILER_WORKFLOWS, TASK_QUEUE } from '../model/workflow-names.ts';

/** How often each loop runs where nothing else is asked for, in milliseconds. */
const EVERY_MS: Readonly<Record<ReconcilerName, number>> = {
  watcher: 5_000,
  updater: 5_000,
  reaper: 60_000,
  fencing: 5_000,
  'auto-restart': 5_000,
};
/** Ids that an earlier version used. */
const FORMER_IDS = ['updater-scan'];

/**
 * Creates the schedules of the reconciling loops where they are missing: several workers may do so at once. One that is
 * there is left as an operator has set it (paused, or at another pace). `everyMs`, in milliseconds, is the pace of all of
 * them where it is given. `off` are created paused.
 */
export async function ensureSchedules(
  client: Client,
  options: { everyMs?: number | undefined; off?: readonly ReconcilerName[] | undefined } = {},
): Promise<void> {
  for (const id of RECONCILERS) {
    try {
      await client.schedule.create({
        scheduleId: id,
        spec: { intervals: [{ every: options.everyMs ?? EVERY_MS[id] }] },
        policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: '1m' },
        ...(options.off?.includes(id) ? { state: { paused: true, note: 'created switched off' } } : {}),
        action: {
          type: 'startWorkflow',
          workflowType: RECONCILER_WORKFLOWS[id],
          taskQueue: TASK_QUEUE,
          args: [],
          workflowId: id,
          staticSummary: RECONCILER_PURPOSE[id],
        },
      });
    } catch (error) {
      if (!(error instanceof ScheduleAlreadyRunning)) throw error;
    }
  }
  for (const id of FORMER_IDS) {
    try {
      await client.schedule.getHandle(id).delete();
    } catch (error) {
      if (!(error instanceof ScheduleNotFoundError)) throw error;
    }
  }
}
