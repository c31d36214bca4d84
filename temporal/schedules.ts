/** The schedules of the reconciling loops: created by every worker, seen, paused and run by hand by operators. */
import { type Client, ScheduleAlreadyRunning, ScheduleOverlapPolicy } from '@temporalio/client';
import { defineSearchAttributeKey, SearchAttributeType, TypedSearchAttributes } from '@temporalio/common';
import { RECONCILER_PURPOSE, RECONCILERS, type ReconcilerName } from '../model/reconcilers.ts';
import { OUTCOME_RUNNING, SEARCH_ATTRIBUTES } from '../model/search-attributes.ts';
import { RECONCILER_WORKFLOWS, TASK_QUEUE } from '../model/workflow-names.ts';

/** How often each loop runs where nothing else is asked for, in milliseconds. */
const EVERY_MS: Readonly<Record<ReconcilerName, number>> = {
  watcher: 5_000,
  updater: 5_000,
  reaper: 60_000,
  fencing: 5_000,
  'auto-restart': 5_000,
};
const OUTCOME = defineSearchAttributeKey(SEARCH_ATTRIBUTES.outcome, SearchAttributeType.KEYWORD);

/** What the Web UI shows of a loop's workflows: what the client adds to those that it starts itself. */
function metadataOf(id: ReconcilerName, searchAttributes: boolean) {
  return {
    staticSummary: RECONCILER_PURPOSE[id],
    typedSearchAttributes: new TypedSearchAttributes(
      searchAttributes ? [{ key: OUTCOME, value: OUTCOME_RUNNING }] : [],
    ),
  };
}

/** A schedule that was made before the namespace had the search attributes, or with another summary. */
async function bringUpToDate(client: Client, id: ReconcilerName, searchAttributes: boolean): Promise<void> {
  const wanted = metadataOf(id, searchAttributes);
  const handle = client.schedule.getHandle(id);
  const { action } = await handle.describe();
  const known = action.typedSearchAttributes;
  const outcome = known instanceof TypedSearchAttributes ? known.get(OUTCOME) : undefined;
  if (action.staticSummary === wanted.staticSummary && outcome === wanted.typedSearchAttributes.get(OUTCOME)) return;
  // As the server tells it, the action has its attributes twice: in the SDK's former shape as well.
  await handle.update((schedule) => ({ ...schedule, action: { ...schedule.action, searchAttributes: {}, ...wanted } }));
}

/**
 * Creates the schedules of the reconciling loops where they are missing: several workers may do so at once. One that is
 * there is left as an operator has set it (paused, or at another pace); what its workflows say of themselves is brought up
 * to date. `everyMs`, in milliseconds, is the pace of all of them where it is given. `off` are created paused.
 * `searchAttributes`: whether the namespace has them; a workflow can't be started with one that it doesn't know.
 */
export async function ensureSchedules(
  client: Client,
  options: {
    everyMs?: number | undefined;
    off?: readonly ReconcilerName[] | undefined;
    searchAttributes?: boolean | undefined;
  } = {},
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
          ...metadataOf(id, options.searchAttributes ?? false),
        },
      });
    } catch (error) {
      if (!(error instanceof ScheduleAlreadyRunning)) throw error;
      await bringUpToDate(client, id, options.searchAttributes ?? false);
    }
  }
}
