/** The schedules of the reconciling loops: created by every worker, seen, paused and run by hand by operators. */
import {
  type Client,
  ScheduleAlreadyRunning,
  type ScheduleDescription,
  ScheduleNotFoundError,
  ScheduleOverlapPolicy,
} from '@temporalio/client';
import { TypedSearchAttributes } from '@temporalio/common';
import { RECONCILER_PURPOSE, RECONCILERS, type ReconcilerName } from '../model/reconcilers.ts';
import { queueOf, RECONCILER_WORKFLOWS, scheduleOf, TASK_QUEUE } from '../model/workflow-names.ts';
import { ServerAges } from './server-ages.ts';

/** How often each loop runs where nothing else is asked for, in milliseconds. */
const EVERY_MS: Readonly<Record<ReconcilerName, number>> = {
  watcher: 5_000,
  updater: 5_000,
  reaper: 60_000,
  fencing: 5_000,
  'auto-restart': 5_000,
};

/** What a look at one loop's schedule found. */
export interface LoopState {
  readonly name: ReconcilerName;
  /** Whether its schedule was missing, and was made by this look. */
  readonly made: boolean;
  /** When it last ran, was changed or was made; `null` where it is switched off. */
  readonly lastRun: Date | null;
  /** How long ago that was, in milliseconds, when it was looked at. */
  readonly silentMs: number;
  /** Whether it has not run for much longer than its interval. */
  readonly isOverdue: boolean;
}

/** A loop that has not run for so many of its intervals, and a minute more, stands still. */
const OVERDUE_INTERVALS = 3;
const OVERDUE_MORE_MS = 60_000;

/** How the schedules are to be. */
export interface ScheduleOptions {
  /** The pace of all of them, in milliseconds; by default each has its own. */
  readonly everyMs?: number | undefined;
  /** Which are created paused. */
  readonly off?: readonly ReconcilerName[] | undefined;
}

/**
 * Creates the schedules of an installation's reconciling loops where they are missing: several workers may do so at once. One
 * that is there is left as an operator has set it (paused, or at another pace); what its workflows say of themselves is brought
 * up to date. Throws when Temporal can't be asked.
 */
export async function ensureSchedules(
  client: Client,
  installation: string,
  options: ScheduleOptions = {},
  ages = ServerAges.of(client),
): Promise<LoopState[]> {
  await ages.settle();
  const states: LoopState[] = [];
  for (const name of RECONCILERS) {
    const state = await readLoop(client, installation, name, true, ages);
    states.push(state ?? (await createSchedule(client, installation, name, options)));
  }
  return states;
}

/**
 * How the schedules of an installation's loops are; those that are missing are left out. Who looks again and again gives its `ages`.
 * Throws when Temporal can't be asked.
 */
export async function readLoops(
  client: Client,
  installation: string,
  ages = ServerAges.of(client),
): Promise<LoopState[]> {
  await ages.settle();
  const states = await Promise.all(RECONCILERS.map((name) => readLoop(client, installation, name, false, ages)));
  return states.filter((state) => state !== null);
}

/**
 * What the Web UI shows of a loop's workflows. No search attribute: one that vanished would keep the schedule from starting them,
 * and the server from telling of it. A pass writes its outcome itself.
 */
function whatItSays(name: ReconcilerName) {
  // As the server tells it, an action has its attributes twice: in the SDK's former shape as well.
  return { staticSummary: RECONCILER_PURPOSE[name], searchAttributes: {}, typedSearchAttributes: [] };
}

/** One loop's schedule, brought up to date where that is asked for; `null` where there is none. */
async function readLoop(
  client: Client,
  installation: string,
  name: ReconcilerName,
  bringUpToDate: boolean,
  ages: ServerAges,
): Promise<LoopState | null> {
  const handle = client.schedule.getHandle(scheduleOf(installation, name));
  let found: ScheduleDescription;
  try {
    found = await handle.describe();
  } catch (error) {
    if (error instanceof ScheduleNotFoundError) return null;
    throw error;
  }
  const { action, spec, state, info } = found;
  const known = action.typedSearchAttributes;
  const hasAttributes = known instanceof TypedSearchAttributes && known.getAll().length > 0;
  if (bringUpToDate && (hasAttributes || action.staticSummary !== RECONCILER_PURPOSE[name]))
    await handle.update((schedule) => ({ ...schedule, action: { ...schedule.action, ...whatItSays(name) } }));
  const everyMs = spec.intervals?.[0]?.every ?? 0;
  // A schedule that was changed or just made has its time anew.
  const since = Math.max(
    info.createdAt.getTime(),
    info.lastUpdatedAt?.getTime() ?? 0,
    info.recentActions.at(-1)?.takenAt.getTime() ?? 0,
  );
  if (state.paused || everyMs === 0) return { name, made: false, lastRun: null, silentMs: 0, isOverdue: false };
  const silentMs = ages.agesOf(`schedule ${scheduleOf(installation, name)}`, new Map([['', since]])).get('') ?? 0;
  const isOverdue = silentMs > OVERDUE_INTERVALS * everyMs + OVERDUE_MORE_MS;
  return { name, made: false, lastRun: new Date(since), silentMs, isOverdue };
}

async function createSchedule(
  client: Client,
  installation: string,
  name: ReconcilerName,
  { everyMs, off }: ScheduleOptions,
): Promise<LoopState> {
  const id = scheduleOf(installation, name);
  try {
    await client.schedule.create({
      scheduleId: id,
      spec: { intervals: [{ every: everyMs ?? EVERY_MS[name] }] },
      policies: { overlap: ScheduleOverlapPolicy.SKIP, catchupWindow: '1m' },
      ...(off?.includes(name) ? { state: { paused: true, note: 'created switched off' } } : {}),
      action: {
        type: 'startWorkflow',
        workflowType: RECONCILER_WORKFLOWS[name],
        taskQueue: queueOf(installation, TASK_QUEUE),
        args: [],
        workflowId: id,
        ...whatItSays(name),
      },
    });
  } catch (error) {
    // Another worker was quicker.
    if (!(error instanceof ScheduleAlreadyRunning)) throw error;
  }
  return { name, made: true, lastRun: null, silentMs: 0, isOverdue: false };
}
