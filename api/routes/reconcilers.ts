import {
  ScheduleNotFoundError,
  WorkflowFailedError,
  type WorkflowHandle,
  WorkflowNotFoundError,
} from '@temporalio/client';
import { WorkflowIdConflictPolicy } from '@temporalio/common';
import { z } from 'zod';
import { RECONCILER_PURPOSE, RECONCILERS, type ReconcilerName, type ReconcilerPass } from '../../model/reconcilers.ts';
import { Refusal } from '../../model/refusal.ts';
import { RECONCILER_WORKFLOWS, scheduleOf, TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { within } from '../../platform/host/with-limit.ts';
import {
  type ReconcilerView,
  reconcilerName,
  reconcilerPassView,
  reconcilerUpdate,
  reconcilerView,
} from '../../wire/operator-api/reconcilers.ts';
import { beginWithin } from '../begin-within.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { waitMs } from '../headers.ts';
import { viewReconcilerPass } from '../views/reconciler.ts';

/** Adds the endpoints of the reconciling loops: looked at, switched off and on, and run once by hand. */
export function addReconcilerRoutes(app: ApiApp, context: ApiContext): void {
  const { temporal } = context;
  const params = z.object({ name: reconcilerName });

  app.get(
    '/v1/system/reconcilers',
    { schema: { tags: ['system'], response: { 200: z.object({ items: z.array(reconcilerView) }), ...errors } } },
    async () => ({ items: await Promise.all(RECONCILERS.map(show)) }),
  );
  app.put(
    '/v1/system/reconcilers/:name',
    { schema: { tags: ['system'], params, body: reconcilerUpdate, response: { 200: reconcilerView, ...errors } } },
    async (request) => {
      const { name } = request.params;
      const handle = temporal.schedule.getHandle(scheduleOf(await context.installation(), name));
      try {
        if (request.body.enabled) await handle.unpause('switched on through the API');
        else await handle.pause('switched off through the API');
      } catch (error) {
        if (!(error instanceof ScheduleNotFoundError)) throw error;
        throw Refusal.conflict(`reconciler "${name}" has no schedule yet: a worker makes it within seconds; start one`);
      }
      return show(name);
    },
  );
  app.post(
    '/v1/system/reconcilers/:name/run',
    { schema: { tags: ['system'], params, response: { 200: reconcilerPassView, ...errors } } },
    async (request) => {
      const { name } = request.params;
      const limitMs = waitMs(request, context.waitLimitMs);
      const workflowId = workflowIds.reconcileOnce(await context.installation(), name);
      const handle = await beginWithin(temporal, limitMs, () =>
        temporal.workflow.start(RECONCILER_WORKFLOWS[name], {
          workflowId,
          taskQueue: TASK_QUEUE,
          args: [],
          // Two who ask at once get one pass.
          workflowIdConflictPolicy: WorkflowIdConflictPolicy.USE_EXISTING,
          staticSummary: `${RECONCILER_PURPOSE[name]}, once, by hand`,
        }),
      );
      return viewReconcilerPass(name, await resultOf(handle, name, limitMs));
    },
  );

  async function resultOf(handle: WorkflowHandle, name: ReconcilerName, limitMs: number): Promise<ReconcilerPass> {
    const pass = await within(limitMs, handle.result(), () => 'late' as const).catch((error: unknown) => {
      if (!(error instanceof WorkflowFailedError)) throw error;
      throw Refusal.unavailable(`the pass of "${name}" failed: ${error.cause?.message ?? error.message}; run it again`);
    });
    if (pass !== 'late') return pass;
    throw Refusal.unavailable(
      `the pass of "${name}" is not over after ${Math.round(limitMs / 1000)} s: it goes on as soon as a worker has time for it; ask again to hear what it found`,
    );
  }

  async function show(name: ReconcilerName): Promise<ReconcilerView> {
    const base = { name, purpose: RECONCILER_PURPOSE[name] };
    try {
      const { spec, state, info } = await temporal.schedule
        .getHandle(scheduleOf(await context.installation(), name))
        .describe();
      const last = info.recentActions.at(-1);
      return {
        ...base,
        scheduled: true,
        enabled: !state.paused,
        every_seconds: (spec.intervals?.[0]?.every ?? 0) / 1000,
        note: state.note ?? null,
        time_last_run: last?.takenAt.toISOString() ?? null,
        time_next_run: state.paused ? null : (info.nextActionTimes[0]?.toISOString() ?? null),
        last_summary: last === undefined ? null : await summaryOf(last.action.workflow),
      };
    } catch (error) {
      if (!(error instanceof ScheduleNotFoundError)) throw error;
      return {
        ...base,
        scheduled: false,
        enabled: false,
        every_seconds: null,
        note: null,
        time_last_run: null,
        time_next_run: null,
        last_summary: null,
      };
    }
  }

  /** What a pass found and did; `null` while it runs, and for one that failed or that Temporal has forgotten. */
  async function summaryOf(run: { workflowId: string; firstExecutionRunId: string }): Promise<string | null> {
    const handle = temporal.workflow.getHandle(run.workflowId, run.firstExecutionRunId);
    try {
      const { status } = await handle.describe();
      return status.name === 'COMPLETED' ? ((await handle.result()) as ReconcilerPass).summary : null;
    } catch (error) {
      if (error instanceof WorkflowNotFoundError) return null;
      throw error;
    }
  }
}
