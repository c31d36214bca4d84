/**
 * A workflow task is lost in the middle of each step that a saga does within it, and done again by another worker: nothing is
 * lost, and nothing is done twice. The worker that loses it is killed; or frozen, and goes on when all is over; or it is alive
 * and cut off, and does what it still has to do beside the worker that does its task again.
 */
import { fork } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { tsToMs } from '@temporalio/common/lib/time';
import { temporal } from '@temporalio/proto';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import { forEach } from '../../activities/for-each.ts';
import { SAGA_STEPS, type SagaType } from '../../model/saga-steps.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { plainTemporal } from '../../temporal/connection.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { workflowBundle } from '../../worker/workflow-bundle.ts';
import { type Execution, FaultInjector, type FaultPlan, silenceLateAttempts } from '../matrix/fault-injector.ts';
import { CuttableProxy } from '../support/cuttable-proxy.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { Supervisor } from '../support/supervisor.ts';
import { eventually } from '../support/wait.ts';
import {
  type End,
  LEFT_OUT,
  type Point,
  SCENARIOS,
  type Scenario,
  Subject,
  WITHOUT_STEPS_IN_THE_TASK,
} from './lost-task-cases.ts';
import type { ToParent, ToVictim, VictimOptions } from './lost-task-worker.ts';

const LONG_STEPS = fileURLToPath(new URL('./long-steps.ts', import.meta.url));
const VICTIM = fileURLToPath(new URL('./lost-task-worker.ts', import.meta.url));
/** Every instance has one CPU, and a migration two for a while. */
const SLEDS = 8;
/**
 * How long the server waits for a worker that may be dead, in milliseconds, at first: where not all came to their points before a task
 * timed out, on a machine that is busy, nothing was lost as it was meant to be, and all is done anew with twice the time.
 */
const TASK_TIMEOUT_MS = 20_000;
/** Longer than anything that a worker whose task was given up still has to do. */
const LONG_TASK_TIMEOUT_MS = 60_000;
/** How many trials of a group are prepared, or looked at, at once: more gain nothing, and have each other wait for PostgreSQL. */
const AT_A_TIME = 8;
/** So many signals that come while a task is under way have the server give it up at once. */
const SIGNALS_AT_ONCE = 5;
/** How much of what the worker that loses its tasks complains of is kept, in characters. */
const KEPT_COMPLAINTS = 4_000;

let harness: Harness;
let folder: string;
let bundleFile: string;
let worker: RunningWorker | null;
const here = new FaultInjector();

beforeAll(async () => {
  silenceLateAttempts();
  folder = await mkdtemp(join(tmpdir(), 'mooring-lost-'));
  bundleFile = join(folder, 'workflows.json');
  const bundle = await workflowBundle([LONG_STEPS]);
  await writeFile(bundleFile, JSON.stringify(bundle));
  harness = await startHarness({
    sleds: SLEDS,
    // No loop mends anything here.
    reconcileEveryMs: 0,
    connections: 20,
    bundle,
    testInterceptors: { activity: [here.interceptors()] },
    temporalDynamicConfig: { 'history.maximumBufferedEventsBatch': SIGNALS_AT_ONCE },
  });
  worker = harness.stack.worker;
});
afterAll(async () => {
  here.releaseAll();
  await worker?.stop();
  await harness?.close();
  await rm(folder, { recursive: true, force: true });
});

async function rest(): Promise<void> {
  await worker?.stop();
  worker = null;
}

async function work(): Promise<void> {
  worker = await startWorker({
    databaseUrl: harness.stack.databaseUrl,
    temporal: harness.stack.temporal,
    bundle: await workflowBundle([LONG_STEPS]),
    alone: true,
    reconcileEveryMs: 0,
    log: createLog('worker', 'silent'),
    testInterceptors: { activity: [here.interceptors()] },
  });
}

let planned = 0;
function plan(injector: FaultInjector, wanted: Omit<FaultPlan, 'id'>, tell: (message: ToVictim) => void = () => {}) {
  planned += 1;
  const id = `plan-${planned}`;
  injector.plan({ ...wanted, id });
  tell({ plan: { ...wanted, id } });
  const release = (point: Point) => {
    injector.release(id, point);
    tell({ release: id, point });
  };
  return {
    id,
    arrived: () => injector.waitFor(id, 'arrived'),
    ran: () => injector.waitFor(id, 'ran'),
    ended: () => injector.waitFor(id, 'ended'),
    execution: (): Execution => injector.execution(id),
    count: () => injector.count(id, 'arrived'),
    release() {
      release('before');
      release('after');
    },
  };
}
type Planned = ReturnType<typeof plan>;

/** The worker that loses its tasks. Between it and Temporal is a piece of network that can be cut. */
class Victim {
  readonly #injector = new FaultInjector();
  #process: { readonly proxy: CuttableProxy; readonly supervisor: Supervisor } | null = null;
  #connected = true;
  #state = '';
  #complaints = '';
  #send: (message: ToVictim) => void = () => {};

  /** Starts it; it takes no work yet. */
  async up(): Promise<this> {
    const proxy = await CuttableProxy.open('127.0.0.1', () => (this.#connected ? harness.stack.temporalAddress : null));
    const options: VictimOptions = {
      databaseUrl: harness.stack.databaseUrl,
      temporal: plainTemporal(proxy.address),
      bundleFile,
    };
    const supervisor = new Supervisor({
      name: 'the worker that loses its tasks',
      restartAfterMs: null,
      spawn: () => {
        // The SDK complains there of every task that is lost: it is shown where the process ends too early.
        const stdio = ['ignore', 'inherit', 'pipe', 'ipc'] as const;
        const child = fork(VICTIM, [JSON.stringify(options)], { execArgv: ['--import', 'tsx'], stdio: [...stdio] });
        child.stderr?.on('data', (text: Buffer) => {
          this.#complaints = `${this.#complaints}${text}`.slice(-KEPT_COMPLAINTS);
        });
        this.#send = (message) => void (child.connected && child.send(message));
        child.on('message', (message: ToParent) => {
          if ('state' in message) this.#state = message.state;
          else this.#injector.reached(message.planId, message.moment, message.execution);
        });
        return child;
      },
    });
    this.#process = { proxy, supervisor };
    supervisor.start();
    await this.#reaches('up');
    return this;
  }

  plan(wanted: Omit<FaultPlan, 'id'>): Planned {
    // Here it is only noted what comes of it there.
    return plan(this.#injector, wanted, (message) => this.#send(message));
  }

  work(): Promise<void> {
    this.#send({ work: true });
    return this.#reaches('works');
  }

  /** Ends every connection between it and Temporal, and lets none be made until {@link connect}. */
  cutOff(): void {
    this.#connected = false;
    this.#process?.proxy.set('cut');
    this.#process?.proxy.set('pass');
  }

  connect(): void {
    this.#connected = true;
  }

  signal(signal: NodeJS.Signals): void {
    this.#process?.supervisor.signal(signal);
  }

  async kill(): Promise<void> {
    await this.#process?.supervisor.kill();
    await this.#process?.proxy.close();
    this.#process = null;
  }

  /** Waits until it has done what it had begun, and is gone. */
  async end(): Promise<void> {
    this.#send({ end: true });
    await this.#process?.supervisor.ended();
  }

  async #reaches(state: string): Promise<void> {
    const runs = () => this.#process?.supervisor.runs === true;
    await eventually(() => this.#state === state || !runs(), `the worker that loses its tasks never ${state}`);
    if (!runs()) throw new Error(`the worker that loses its tasks ended too early: ${this.#complaints}`);
  }
}

/** How the task is lost. */
type Way = 'killed' | 'frozen' | 'cut off';

interface Case {
  readonly name: string;
  readonly scenario: Scenario;
  readonly step: string;
  readonly point: Point;
  /** Its workflow is asked to cancel while its only task is under way. */
  readonly cancelled: boolean;
  readonly end: End;
}

const CASES: readonly Case[] = SCENARIOS.flatMap((scenario) =>
  scenario.steps.flatMap((step) =>
    (['before', 'after'] as const).map((point) => ({
      name: `${scenario.name}, ${point} ${step}`,
      scenario,
      step,
      point,
      cancelled: false,
      end: scenario.ends(step, point),
    })),
  ),
);

const scenarioNamed = (name: string): Scenario => {
  const found = SCENARIOS.find((scenario) => scenario.name === name);
  if (found === undefined) throw new Error(`no scenario "${name}"`);
  return found;
};
/** A start is undone unless its success is on record; a migration goes on once its destination may have been commanded. */
const CANCELLED: readonly Case[] = (
  [
    ['a start', 'registerVmm', 'after', 'undone'],
    ['a start', 'runVmm', 'before', 'undone'],
    ['a start', 'runVmm', 'after', 'succeeded'],
    ['a migration', 'claimMigration', 'after', 'undone'],
    ['a migration', 'registerVmm', 'before', 'undone'],
    ['a migration', 'migrateIn', 'before', 'succeeded'],
    ['a migration', 'migrateIn', 'after', 'succeeded'],
  ] as const
).map(([name, step, point, end]) => ({
  name: `${name}, ${point} ${step}, cancelled`,
  scenario: scenarioNamed(name),
  step,
  point,
  cancelled: true,
  end,
}));

test('every step that a saga does within its task is lost at, or listed with the reason', () => {
  const steps = (Object.keys(SAGA_STEPS) as SagaType[])
    .filter((type) => !WITHOUT_STEPS_IN_THE_TASK.includes(type))
    .flatMap((type) =>
      [...SAGA_STEPS[type].steps, ...SAGA_STEPS[type].compensations].map(({ activity }) => `${type}/${activity}`),
    );
  const lostAt = SCENARIOS.flatMap(({ workflow, steps }) => steps.map((step) => `${workflow}/${step}`));
  expect([...new Set([...lostAt, ...Object.keys(LEFT_OUT)])].sort()).toEqual([...new Set(steps)].sort());
  expect(lostAt.filter((step) => step in LEFT_OUT)).toEqual([]);
});

interface Trial extends Case {
  readonly subject: Subject;
  readonly vmmsBefore: readonly string[];
  workflowId: string;
  /** The step at which its task is lost. */
  at: Planned | null;
  /** The steps that come after it. */
  later: readonly Planned[];
  /** When its task was lost, by this machine's clock, in milliseconds. */
  lostAtMs: number;
  /** What was on record when all was over. */
  found: unknown;
}

/** Does something with every trial, and notes what is wrong with which. */
class Trials {
  readonly wrong: string[] = [];
  readonly all: readonly Trial[];

  constructor(all: readonly Trial[]) {
    this.all = all;
  }

  async each(act: (trial: Trial) => Promise<void> | void): Promise<void> {
    await forEach(this.all, AT_A_TIME, async (trial) => {
      try {
        await act(trial);
      } catch (error) {
        this.wrong.push(`${trial.name}: ${error instanceof Error ? error.message : error}`);
      }
    });
  }
}

async function vmmsOf(id: string) {
  const { rows } = await harness.database.db.execute(
    sql`SELECT id, sled_id, state FROM vmm WHERE instance_id = ${id} ORDER BY time_created, id`,
  );
  return z.array(z.object({ id: z.string(), sled_id: z.string().nullable(), state: z.string() })).parse(rows);
}

const inventory = z.object({ vmms: z.array(z.object({ vmm_id: z.string() })) });
/** The sleds that have a VMM registered, by their agents' word. */
async function registeredOn(vmmId: string): Promise<string[]> {
  const asked = harness.stack.sleds.map(async ({ id, agent }) => {
    const { vmms } = inventory.parse(await (await fetch(`${agent.url}/vmms`)).json());
    return vmms.filter(({ vmm_id }) => vmm_id === vmmId).map(() => id);
  });
  return (await Promise.all(asked)).flat();
}

/** All that is on record of an instance, but for when. */
async function recorded(id: string) {
  const { instance, active, target, migration, externalState } = await harness.record(id);
  const { rows } = await harness.database.db.execute(
    sql`SELECT kind, vmm_id, workflow_id, succeeded, error IS NOT NULL AS failed FROM operation WHERE instance_id = ${id} ORDER BY time_started, id`,
  );
  const { state, intendedState, stateGeneration, activeVmmId, targetVmmId, migrationId } = instance;
  return {
    instance: { state, intendedState, stateGeneration, activeVmmId, targetVmmId, migrationId, externalState },
    active: active && { id: active.id, state: active.state, generation: active.stateGeneration },
    target: target?.id ?? null,
    migration: migration?.id ?? null,
    vmms: await vmmsOf(id),
    operations: rows,
    holds: await harness.holds(id),
    registered: active === null ? [] : await registeredOn(active.id),
  };
}

/** What the history of a workflow says, in short. */
async function story(workflowId: string): Promise<string> {
  const { events } = await harness.temporal.workflow.getHandle(workflowId).fetchHistory();
  return (events ?? [])
    .map((event) => {
      const { failure } = event.workflowExecutionFailedEventAttributes ?? event.markerRecordedEventAttributes ?? {};
      return `${temporal.api.enums.v1.EventType[event.eventType ?? 0]}${failure ? ` (${failure.message}: ${failure.cause?.message})` : ''}`;
    })
    .join(', ');
}

/** That a saga has ended as it must, that it made one VMM, and that nothing is left. Returns all that is on record then. */
async function endedWell(trial: Trial, way: Way): Promise<unknown> {
  const { scenario, subject, end, workflowId } = trial;
  const handle = harness.temporal.workflow.getHandle(workflowId);
  await eventually(async () => (await handle.describe()).status.name !== 'RUNNING', 'its workflow never closed').catch(
    async (error: Error) => {
      throw new Error(`${error.message}: ${await story(workflowId)}`);
    },
  );
  const outcome = await handle.result().then(
    () => 'succeeded',
    () => 'failed',
  );
  // The end of a saga that was cut off has succeeded when it is undone.
  const closes = scenario.workflow === 'vmmUnwind' || end === 'succeeded' ? 'succeeded' : 'failed';
  if (outcome !== closes) throw new Error(`its workflow ${outcome}: ${await story(workflowId)}`);
  await harness.shows(subject.id, scenario.shows[end]);
  // On a machine that is busy a sled may have had no time to say that a VMM is gone: the watcher asks it again.
  await eventually(async () => {
    const { rowCount } = await harness.database.db.execute(sql`
      SELECT 1 FROM vmm JOIN sled_reservation ON vmm_id = vmm.id
      WHERE vmm.instance_id = ${subject.id} AND state = 'saga_unwound' AND kind = 'tombstoned'`);
    if (rowCount === 0) return true;
    await harness.reconcile();
    return false;
  }, 'what it held was never released');
  await harness.rests(subject.id);
  await subject.until(({ migration }) => migration === null, 'its migration was never cleared');

  const found = await recorded(subject.id);
  if (scenario.operation !== null) {
    const own = z
      .array(z.object({ kind: z.string(), vmm_id: z.string(), succeeded: z.boolean().nullable() }))
      .parse(found.operations)
      .filter(({ kind }) => kind === scenario.operation);
    expect(own, 'the operation').toHaveLength(1);
    expect(own[0]?.succeeded, 'the operation succeeded').toBe(end === 'succeeded');
    const vmmId = own[0]?.vmm_id ?? '';
    expect(trial.at?.execution().vmmId ?? vmmId, 'the VMM of the first try').toBe(vmmId);
    const before = new Set(trial.vmmsBefore);
    if (scenario.workflow !== 'vmmUnwind')
      expect(
        found.vmms.map(({ id }) => id).filter((id) => !before.has(id)),
        'the VMMs that were made',
      ).toEqual([vmmId]);
    const on = found.vmms.find(({ id }) => id === vmmId)?.sled_id;
    expect(await registeredOn(vmmId), 'where it is registered').toEqual(end === 'succeeded' ? [on] : []);
    expect(found.instance.activeVmmId === vmmId, 'the instance has it').toBe(end === 'succeeded');
  }
  const runs = found.instance.externalState === 'running';
  expect(found.holds, 'what it holds').toEqual({ reservations: runs ? ['active'] : [], charge: runs });
  expect(found.registered, 'where its guest is').toHaveLength(runs ? 1 : 0);

  const { events } = await handle.fetchHistory();
  const lostAt = events?.findIndex((event) =>
    way === 'cut off' ? event.workflowTaskFailedEventAttributes : event.workflowTaskTimedOutEventAttributes,
  );
  expect(lostAt, 'the task that was lost').toBeGreaterThan(0);
  // A machine that is busy may have had other steps go on as activities: this one was within the task.
  const asActivities = events
    ?.slice(0, lostAt)
    .filter((event) => event.activityTaskScheduledEventAttributes?.activityType?.name === trial.step);
  expect(asActivities, 'the step as an activity').toEqual([]);
  return found;
}

interface Loss {
  readonly way: Way;
  readonly cases: readonly Case[];
}

/**
 * Prepares the trials, has their tasks lost, and sees that all ends well, also after what late workers do. Returns `false`, with
 * nothing told, when a task had timed out before its worker was gone.
 */
async function loseTasks(taskTimeoutMs: number, losses: readonly Loss[]): Promise<boolean> {
  const lost = losses.map((loss) => ({ ...loss, victim: new Victim() }));
  try {
    const groups = await Promise.all(
      lost.map(async ({ way, cases, victim }) => ({
        way,
        victim: await victim.up(),
        trials: new Trials(await prepareAll(cases, victim, taskTimeoutMs)),
      })),
    );
    await rest();
    here.releaseAll();
    for (const { trials } of groups) await trials.each(({ scenario, subject }) => scenario.settle?.(subject));
    for (const { way, victim, trials } of groups) await lose(way, victim, trials);
    await work();
    for (const { way, trials } of groups) if (way === 'cut off') await trials.each(giveUp);
    await Promise.all(
      groups.map(({ way, trials }) =>
        trials.each(async (trial) => {
          trial.found = await endedWell(trial, way);
        }),
      ),
    );
    const early = (await Promise.all(groups.flatMap(({ trials }) => trials.all.map(timedOutEarly)))).filter(Boolean);
    if (early.length > 0) {
      console.warn(`${early.length} tasks timed out after ${taskTimeoutMs} ms before their worker was gone: once more`);
      return false;
    }
    for (const { way, victim, trials } of groups) {
      if (way === 'killed') continue;
      await goOnLate(victim, trials);
      const lateSteps = trials.all.flatMap(({ later }) => later).filter((step) => step.count() > 0);
      // Whose task was frozen for so long may be told at once that it has no task any more.
      if (way === 'cut off') expect(lateSteps.length, 'steps that come late').toBeGreaterThan(0);
    }
    expect(groups.flatMap(({ trials }) => trials.wrong).join('\n')).toBe('');
    await harness.examined(true);
    return true;
  } finally {
    for (const { victim } of lost) await victim.kill();
    if (worker === null) await work();
  }
}

/** Loses tasks, with ever more time for them, until none has timed out by itself. */
async function loseTasksInTime(taskTimeoutMs: number, losses: readonly Loss[]): Promise<void> {
  let timeoutMs = taskTimeoutMs;
  while (!(await loseTasks(timeoutMs, losses))) {
    await harness.reconcile();
    timeoutMs *= 2;
  }
}

async function prepareAll(cases: readonly Case[], victim: Victim, taskTimeoutMs: number): Promise<Trial[]> {
  const trials: Trial[] = [];
  await forEach(cases, AT_A_TIME, async (one) => {
    trials.push(await prepare(one, victim, taskTimeoutMs));
  });
  return trials;
}

async function prepare(one: Case, victim: Victim, taskTimeoutMs: number): Promise<Trial> {
  const subject = await Subject.create({
    harness,
    taskTimeoutMs,
    planHere: (wanted) => plan(here, wanted),
    planThere: (wanted) => victim.plan(wanted),
  });
  await one.scenario.prepare(subject);
  const vmmsBefore = (await vmmsOf(subject.id)).map(({ id }) => id);
  return { ...one, subject, vmmsBefore, workflowId: '', at: null, later: [], lostAtMs: 0, found: null };
}

/** Has a worker come to the points at which it loses its tasks, and lose them. */
async function lose(way: Way, victim: Victim, trials: Trials): Promise<void> {
  await trials.each(async (trial) => {
    const { scenario, step, point } = trial;
    trial.workflowId = await scenario.begin(trial.subject);
    const own = { workflowType: scenario.workflow, subject: trial.workflowId };
    const hold = point === 'before' ? { holdBefore: true } : { holdAfter: true };
    trial.at = victim.plan({ ...own, ...hold, activity: step });
    trial.later = scenario.steps
      .slice(scenario.steps.indexOf(step) + 1)
      .map((activity) => victim.plan({ ...own, activity, observe: true }));
  });
  await victim.work();
  await trials.each(async ({ scenario, subject, at, point, cancelled, workflowId }) => {
    await scenario.meanwhile?.(subject);
    await (point === 'before' ? at?.arrived() : at?.ran());
    if (cancelled) await harness.temporal.workflow.getHandle(workflowId).cancel();
  });
  if (way === 'killed') await victim.kill();
  else {
    if (way === 'frozen') victim.signal('SIGSTOP');
    victim.cutOff();
  }
  for (const trial of trials.all) trial.lostAtMs = Date.now();
  await trials.each(({ scenario, subject }) => scenario.lost?.(subject));
}

/** Whether a task of a trial's workflow had timed out, which the server says by the same clock, before its worker was gone. */
async function timedOutEarly({ workflowId, lostAtMs }: Trial): Promise<boolean> {
  const { events } = await harness.temporal.workflow.getHandle(workflowId).fetchHistory();
  return (events ?? []).some(
    ({ eventTime, workflowTaskTimedOutEventAttributes: timedOut }) => timedOut != null && tsToMs(eventTime) <= lostAtMs,
  );
}

/** Has the server give up the task that is under way, as it does when too much comes meanwhile. */
async function giveUp(trial: Trial): Promise<void> {
  const handle = harness.temporal.workflow.getHandle(trial.workflowId);
  await Promise.all(Array.from({ length: SIGNALS_AT_ONCE + 1 }, () => handle.signal('nudge')));
  trial.lostAtMs = Date.now();
}

/** Lets a worker go on with tasks that are done long since, and sees that this changes nothing. */
async function goOnLate(victim: Victim, trials: Trials): Promise<void> {
  await trials.each(({ at }) => at?.release());
  victim.connect();
  victim.signal('SIGCONT');
  await trials.each(({ at }) => at?.ended());
  await victim.end();
  await trials.each(async ({ subject, found }) => {
    await harness.rests(subject.id);
    expect(await recorded(subject.id), 'after the late steps').toEqual(found);
  });
}

test('a task times out, whose worker was killed, or was frozen and goes on late', () =>
  loseTasksInTime(TASK_TIMEOUT_MS, [
    { way: 'frozen', cases: CASES },
    { way: 'killed', cases: [...CASES, ...CANCELLED] },
  ]));

test('a task is given up, whose worker is cut off and does all the rest of it late', () =>
  loseTasksInTime(LONG_TASK_TIMEOUT_MS, [{ way: 'cut off', cases: CASES }]));

test('a cancellation that comes while the only task is under way finds the start done, and leaves it', async () => {
  const id = await harness.create();
  const command = plan(here, { workflowType: 'instanceStart', activity: 'runVmm', subject: id, holdAfter: true });
  const handle = await harness.temporal.workflow.start('instanceStart', {
    workflowId: workflowIds.start(id),
    taskQueue: 'mooring',
    args: [{ instanceId: id, reason: 'user' }],
  });
  await command.ran();
  await handle.cancel();
  command.release();
  expect(await handle.result()).toMatchObject({ outcome: 'started' });
  await harness.shows(id, 'running');
  const { events } = await handle.fetchHistory();
  expect(events?.filter((event) => event.workflowTaskFailedEventAttributes)).toHaveLength(1);
  await harness.examined(true);
});
