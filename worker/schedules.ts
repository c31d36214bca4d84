import { type Client, ScheduleAlreadyRunning, ScheduleOverlapPolicy } from '@temporalio/client';
import { TASK_QUEUE } from '../model/workflow-names.ts';

/** The reconciling loops: the schedule's id, the workflow that it runs, and what people read of it. */
export const RECONCILERS = [
  { id: 'watcher', workflowType: 'watcher', summary: 'poll every sled and compare its inventory with the database' },
  { id: 'updater-scan', workflowType: 'updaterScan', summary: 'signal every instance that needs an update' },
] as const;

/**
 * Creates the schedules of the reconciling loops where they are missing: several workers may do so at once. One that is
 * there is left as an operator has set it (paused, or at another pace). `everyMs` is in milliseconds.
 */
export async function ensureSchedules(client: Client, everyMs: number): Promise<void> {
  for (const { id, workflowType, summary } of RECONCILERS) {
    try {
      await client.schedule.create({
        scheduleId: id,
        spec: { intervals: [{ every: everyMs }] },
        policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: '1m' },
        action: {
          type: 'startWorkflow',
          workflowType,
          taskQueue: TASK_QUEUE,
          args: [],
          workflowId: id,
          staticSummary: summary,
        },
      });
    } catch (error) {
      if (!(error instanceof ScheduleAlreadyRunning)) throw error;
    }
  }
}
