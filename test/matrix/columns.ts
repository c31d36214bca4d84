/**
 * The faults of the matrix: what each does to a step, where it can't apply and why, and what the caller and the instance
 * must then show.
 */
import type { FaultCall } from '../../sled-agent/faults.ts';
import { NotReached } from './fault-injector.ts';
import type { Scenario } from './scenarios.ts';
import { ATTEMPTS, type Planned, type Subject } from './subject.ts';

/** A step of a workflow, and the scenario that reaches it. */
export interface Row {
  readonly scenario: Scenario;
  readonly activity: string;
  readonly title: string;
  readonly isCompensation: boolean;
  /** Its workflow undoes what it did when a step fails for good. */
  readonly isSaga: boolean;
  /** It is tried within the workflow task, before it is an activity. */
  readonly atOnce: boolean;
  /** The calls to sleds that it was seen to make. */
  readonly calls: ReadonlySet<FaultCall>;
}

/**
 * `same`: all ends as without the fault. `undone`: the operation fails and is undone. `either`: one or the other.
 * `cut off`: the caller learns that it was ended; what it left is brought to one of the two ends.
 */
export type Expectation = 'same' | 'undone' | 'either' | 'cut off';

/** What is done while the operation is under way. */
export interface Course {
  /** Runs beside the operation's call. */
  during?(): Promise<void>;
  /** Runs when the call has been answered, before anything else is asked. */
  answered?(): Promise<void>;
  /** Runs when the next operation has succeeded. */
  afterwards?(): Promise<void>;
  /** How long the caller waits, in seconds. */
  readonly waitSeconds?: number;
}

/** Something that happens to the whole installation while every cell of a round stands at its step. */
export type Disaster = 'postgres' | 'worker';

export interface Column {
  readonly head: string;
  readonly title: string;
  readonly disaster?: Disaster;
  /** Why it can't apply to a row; `null` where it does. */
  notApplicable(row: Row): string | null;
  expects(row: Row): Expectation;
  /** Plans the fault, before the operation begins. `disaster` resolves when the column's disaster has struck. */
  arrange(subject: Subject, row: Row, disaster: () => Promise<void>): Course;
}

const ALWAYS = () => null;
const ATTEMPTS_DOWN = 2;
/** A call that takes effect and is answered after everyone has given up on it, in milliseconds. */
const TOO_LATE_MS = 5_000;

function step(row: Row) {
  return { workflowType: row.scenario.workflow, activity: row.activity };
}

/** A step of a saga may fail for good; everything else is tried again until it has a definitive answer. */
function onlySagaSteps(row: Row): string | null {
  if (row.isCompensation)
    return 'a compensation has no final failure: it is tried again until the answer is definitive';
  return row.isSaga ? null : 'nothing is undone: it is tried again until it is done';
}

function onlySledSteps(row: Row): string | null {
  return row.calls.size > 0 ? null : 'it talks to no sled';
}

const isCommand = (call: FaultCall) => call === 'register' || call.startsWith('state:');

/** What a final failure of a step comes to. The scan begins a cut-off unwind anew, so that one may also carry forward. */
function undoneBySaga(row: Row): Expectation {
  return row.scenario.workflow === 'vmmUnwind' ? 'either' : 'undone';
}

/** Has the next execution of a step fail for good: by its sled's own answer where it commands one. */
function planFinal(subject: Subject, row: Row, plan: { holdBefore?: boolean; holdAfter?: boolean } = {}): Planned {
  const commands = [...row.calls].filter(isCommand);
  for (const call of commands) subject.onSleds({ call, act: { type: 'refuse', status: 409 }, times: 1 });
  return commands.length > 0
    ? subject.plan({ ...step(row), ...plan })
    : subject.plan({ ...step(row), ...plan, run: 'never', fail: 'final' });
}

/** A late attempt: the first one, within the workflow task, waits, is given up by time-out, and goes on when it is let go. */
function lateColumn(
  head: string,
  title: string,
  notApplicable: Column['notApplicable'],
  expects: Column['expects'],
  arrange: (subject: Subject, row: Row, late: Planned, land: () => Promise<void>) => Course,
): Column {
  return {
    head,
    title,
    notApplicable: (row) =>
      row.activity.startsWith('read') ? 'it only reads: nothing takes effect late' : notApplicable(row),
    expects,
    arrange(subject, row) {
      const late = subject.plan({ ...step(row), holdBefore: true });
      const land = async () => {
        if (late.count('arrived') === 0) throw new NotReached('its step was never executed');
        late.release('before');
        await late.waitFor('ended');
      };
      return arrange(subject, row, late, land);
    },
  };
}

/** The steps that record an operation's outcome: its caller hears it, whatever becomes of the workflow. */
const RECORDS_OUTCOME: ReadonlySet<string> = new Set(['runVmm', 'migrateIn', 'finishUnwind']);

/** What comes of it when a step's workflow is ended or cancelled; `effect`: what comes of the step. */
function interruption(how: 'cancel' | 'terminate', row: Row, effect: 'done' | 'late' | 'lost'): Expectation {
  if (row.scenario.operation === null || !['instanceStart', 'instanceMigrate'].includes(row.scenario.workflow))
    return row.scenario.workflow === 'vmmUnwind' ? 'either' : 'same';
  if (how === 'terminate') return effect === 'done' && RECORDS_OUTCOME.has(row.activity) ? 'same' : 'cut off';
  return row.isCompensation ? 'same' : 'either';
}

/**
 * Ends or cancels the step's workflow while it stands before or after its effect. The try within the workflow task is given up
 * meanwhile, and the step goes on as an activity: that one is held too, and there the cancellation arrives.
 */
function interrupted(
  head: string,
  title: string,
  how: 'cancel' | 'terminate',
  effect: 'done' | 'late' | 'lost',
): Column {
  return {
    head,
    title,
    notApplicable: ALWAYS,
    expects: (row) => interruption(how, row, effect),
    arrange(subject, row) {
      const point = effect === 'done' ? ('after' as const) : ('before' as const);
      const held = subject.plan({
        ...step(row),
        times: ATTEMPTS,
        ...(point === 'after' ? { holdAfter: true } : { holdBefore: true }),
        ...(effect === 'lost' ? { run: 'never' as const, fail: 'retryable' as const } : {}),
      });
      return {
        async during() {
          await held.waitFor(point === 'after' ? 'ran' : 'arrived');
          await subject[how](held.execution());
          held.drop();
          if (how === 'cancel') await held.end(point);
        },
        // A worker hears nothing of a termination within a task: what it still does there comes when the caller has been answered.
        async answered() {
          await held.end(point);
        },
      };
    },
  };
}

/** The sled answers a step's calls with a fault, so many times. */
function onSled(head: string, title: string, act: Parameters<Subject['onSleds']>[0] & object, times: number): Column {
  return {
    head,
    title,
    notApplicable: onlySledSteps,
    expects: () => 'same',
    arrange(subject, row) {
      for (const call of row.calls) if ('act' in act) subject.onSleds({ call, act: act.act, times });
      const seen = subject.plan({ ...step(row), observe: true });
      return { during: () => seen.waitFor('ended') };
    },
  };
}

function disaster(head: string, title: string, which: Disaster, point: 'before' | 'after'): Column {
  return {
    head,
    title,
    disaster: which,
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row, happens) {
      const held = subject.plan({
        ...step(row),
        times: ATTEMPTS,
        ...(point === 'after' ? { holdAfter: true } : { holdBefore: true }),
      });
      return {
        async during() {
          await held.waitFor(point === 'after' ? 'ran' : 'arrived');
          // With PostgreSQL down the step goes on and meets that; a killed worker takes it to its grave.
          await happens();
          held.release(point);
        },
      };
    },
  };
}

export const COLUMNS: readonly Column[] = [
  {
    head: 'fails before',
    title: 'fails before it takes effect, and may be tried again',
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row) {
      const failed = subject.plan({ ...step(row), run: 'never', fail: 'retryable' });
      return { during: () => failed.waitFor('ended') };
    },
  },
  {
    head: 'refused before',
    title: 'fails for good before it takes effect',
    notApplicable: onlySagaSteps,
    expects: undoneBySaga,
    arrange(subject, row) {
      const failed = planFinal(subject, row);
      return { during: () => failed.waitFor('ended') };
    },
  },
  {
    head: 'fails after',
    title: 'takes effect, then fails and is tried again',
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row) {
      const failed = subject.plan({ ...step(row), fail: 'retryable' });
      return { during: () => failed.waitFor('ended') };
    },
  },
  {
    head: 'lost after',
    title: 'takes effect, then fails for good',
    notApplicable: (row) =>
      row.calls.has('state:migration_target')
        ? 'past the point of no return nothing is final: what the destination has taken on is seen through'
        : onlySagaSteps(row),
    expects: () => 'either',
    arrange(subject, row) {
      const failed = subject.plan({ ...step(row), fail: 'final' });
      return { during: () => failed.waitFor('ended') };
    },
  },
  lateColumn(
    'late: before',
    'times out; the late attempt takes effect before the next one ends, or the saga unwinds',
    ALWAYS,
    (row) => (onlySagaSteps(row) === null ? undoneOrSpared(row) : 'same'),
    (subject, row, _, land) => {
      // A sled's refusal holds for an earlier attempt that comes later, so it comes first.
      const refusedBySled = [...row.calls].some(isCommand);
      const next =
        onlySagaSteps(row) === null
          ? planFinal(subject, row, refusedBySled ? { holdAfter: true } : { holdBefore: true })
          : subject.plan({ ...step(row), holdBefore: true });
      return {
        async during() {
          await next.waitFor(refusedBySled && onlySagaSteps(row) === null ? 'ran' : 'arrived');
          await land();
          next.release('before');
          next.release('after');
        },
      };
    },
  ),
  lateColumn(
    'late: unwind begins',
    'times out; the late attempt takes effect when the unwind has begun (elsewhere: right after the next attempt)',
    ALWAYS,
    (row) => (onlySagaSteps(row) === null ? undoneBySaga(row) : 'same'),
    (subject, row, _, land) => {
      const saga = onlySagaSteps(row) === null;
      if (saga) planFinal(subject, row);
      const next = subject.plan({
        ...(saga ? { workflowType: row.scenario.workflow, activity: 'beginUnwind' } : step(row)),
        holdAfter: true,
        times: ATTEMPTS,
      });
      return {
        async during() {
          await next.waitFor('ran');
          await land();
          next.release('after');
        },
      };
    },
  ),
  lateColumn(
    'late: unwind ends',
    'times out; the late attempt takes effect when all but the last transaction of the unwind is done',
    (row) => (onlySagaSteps(row) === null ? null : 'its failure begins no unwind'),
    undoneBySaga,
    (subject, row, _, land) => {
      planFinal(subject, row);
      const last = subject.plan({
        workflowType: row.scenario.workflow,
        activity: 'finishUnwind',
        holdBefore: true,
        times: ATTEMPTS,
      });
      return {
        async during() {
          await last.waitFor('arrived');
          await land();
          last.release('before');
        },
      };
    },
  ),
  lateColumn(
    'late: undone',
    'times out; the late attempt takes effect when the saga has unwound and the next operation has succeeded',
    (row) => (onlySagaSteps(row) === null ? null : 'its failure begins no unwind'),
    undoneBySaga,
    (subject, row, _, land) => {
      planFinal(subject, row);
      return { afterwards: land };
    },
  ),
  lateColumn(
    'late: done',
    'times out; the late attempt takes effect when the workflow is over and the next operation has succeeded',
    ALWAYS,
    () => 'same',
    (_subject, _row, _late, land) => ({ afterwards: land }),
  ),
  {
    head: 'twice',
    title: 'runs twice, one after the other',
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row) {
      const doubled = subject.plan({ ...step(row), run: 'twice' });
      return { during: () => doubled.waitFor('ended') };
    },
  },
  {
    head: 'twice at once',
    title: 'runs twice at the same time',
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row) {
      const doubled = subject.plan({ ...step(row), run: 'twice at once' });
      return { during: () => doubled.waitFor('ended') };
    },
  },
  interrupted('cancelled before', 'the workflow is cancelled before the step takes effect', 'cancel', 'late'),
  interrupted('cancelled after', 'the workflow is cancelled when the step has taken effect', 'cancel', 'done'),
  {
    head: 'cancelled within',
    title:
      'the workflow is cancelled while the step is done within its task, which may be done again from its beginning',
    notApplicable: (row) => (row.atOnce ? null : 'it is not tried within the workflow task'),
    expects: (row) => interruption('cancel', row, 'done'),
    arrange(subject, row) {
      const held = subject.plan({ ...step(row), holdAfter: true });
      return {
        async during() {
          await held.waitFor('ran');
          await subject.askToCancel(held.execution());
          await held.end('after');
        },
      };
    },
  },
  interrupted('terminated before', 'the workflow is terminated, and the step never takes effect', 'terminate', 'lost'),
  interrupted(
    'terminated, late',
    'the workflow is terminated, and the step takes effect afterwards',
    'terminate',
    'late',
  ),
  interrupted('terminated after', 'the workflow is terminated when the step has taken effect', 'terminate', 'done'),
  {
    head: 'sled down',
    title: 'the sled breaks every connection until the caller has been sent on',
    notApplicable: onlySledSteps,
    expects: () => 'same',
    arrange(subject, row) {
      const lifts = [...row.calls].map((call) => subject.onSleds({ call, act: { type: 'drop_before' } }));
      const seen = subject.plan({ ...step(row), observe: true });
      const lift = () => {
        for (const one of lifts) one();
      };
      return {
        waitSeconds: 1,
        async during() {
          await seen.waitFor('ended');
          // Where nobody waits for an answer, it is down for some attempts; a loop's pass has only one.
          if (row.scenario.operation !== null) return;
          if (!row.scenario.alone) await seen.waitFor('ended', ATTEMPTS_DOWN);
          lift();
        },
        async answered() {
          lift();
        },
      };
    },
  },
  onSled('sled busy', 'the sled answers 503 twice', { call: 'get', act: { type: 'refuse', status: 503 } }, 2),
  onSled(
    'sled slow',
    'the sled does it, and answers when nobody listens any more',
    { call: 'get', act: { type: 'answer_late', ms: TOO_LATE_MS } },
    1,
  ),
  onSled('reply lost', 'the sled does it, and the connection breaks', { call: 'get', act: { type: 'drop_after' } }, 1),
  onSled('nonsense', 'the sled does it, and answers nonsense', { call: 'get', act: { type: 'garbage' } }, 1),
  {
    head: 'sled refuses',
    title: 'the sled refuses with 409',
    notApplicable: onlySledSteps,
    expects(row) {
      if (onlySagaSteps(row) !== null) return 'same';
      // A question that is refused settles nothing: the saga does without its answer.
      return [...row.calls].some(isCommand) ? undoneBySaga(row) : 'either';
    },
    arrange(subject, row) {
      const saga = onlySagaSteps(row) === null;
      const lifts = [...row.calls].map((call) =>
        subject.onSleds({ call, act: { type: 'refuse', status: 409 }, ...(saga ? {} : { times: 2 }) }),
      );
      const seen = subject.plan({ ...step(row), observe: true });
      return {
        during: () => seen.waitFor('ended'),
        async answered() {
          for (const lift of lifts) lift();
        },
      };
    },
  },
  {
    head: 'VMM lost',
    title: 'the sled has lost the VMM',
    notApplicable: (row) =>
      [...row.calls].some((call) => call === 'unregister' || call.startsWith('state:'))
        ? null
        : (onlySledSteps(row) ?? 'there is no VMM of its own on the sled yet'),
    expects: (row) => (onlySagaSteps(row) === null ? undoneBySaga(row) : 'same'),
    arrange(subject, row) {
      const held = subject.plan({ ...step(row), holdBefore: true, times: ATTEMPTS });
      return {
        async during() {
          await held.waitFor('arrived');
          const { active, target } = await subject.record();
          const { vmmId } = held.execution();
          for (const { agent } of subject.stack.sleds) agent.faults.lose(vmmId ?? (target ?? active)?.id ?? '');
          held.drop();
          held.release('before');
        },
      };
    },
  },
  {
    head: 'said to be off',
    title:
      'an operator says of every sled that it is off, while they answer: nobody believes it, and nothing is changed',
    notApplicable: ALWAYS,
    expects: () => 'same',
    arrange(subject, row) {
      const seen = subject.plan({ ...step(row), observe: true });
      return {
        async during() {
          await seen.waitFor('arrived');
          await subject.sayThatSledsAreOff();
          await seen.waitFor('ended');
        },
      };
    },
  },
  disaster(
    'PostgreSQL before',
    'PostgreSQL is killed, and comes back, before the step takes effect',
    'postgres',
    'before',
  ),
  disaster('PostgreSQL after', 'PostgreSQL is killed, and comes back, after the step took effect', 'postgres', 'after'),
  disaster('worker before', 'the worker is killed before the step takes effect', 'worker', 'before'),
  disaster('worker after', 'the worker is killed after the step took effect, before it said so', 'worker', 'after'),
];

/**
 * A late attempt that lands before the refusal is dealt with may show that the guest runs after all, or may have marked the
 * destination of a migration as about to be commanded: that is carried forward.
 */
function undoneOrSpared(row: Row): Expectation {
  const marks = row.scenario.workflow === 'instanceMigrate' && row.calls.has('register');
  return marks || [...row.calls].some((call) => call.startsWith('state:')) ? 'either' : undoneBySaga(row);
}
