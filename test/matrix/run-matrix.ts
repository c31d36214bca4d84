/**
 * Runs the fault matrix: first each scenario without a fault, which shows what steps it reaches and what they do; then
 * every cell, many at a time on one stack where the fault is one instance's own; then the loops' passes alone; then the
 * disasters, each while every row stands at its step. At last the doctor looks at everything.
 */
import { SledClient } from '../../activities/sled-client.ts';
import { examine } from '../../doctor/examine.ts';
import type { Finding } from '../../doctor/finding.ts';
import { RECONCILERS } from '../../model/reconcilers.ts';
import { SAGA_STEPS, type SagaSteps, type SagaType } from '../../model/saga-steps.ts';
import type { ExternalState } from '../../model/states.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { FaultCall } from '../../sled-agent/faults.ts';
import { COLUMNS, type Column, type Course, type Disaster, type Expectation, type Row } from './columns.ts';
import { NotReached, type SeenStep } from './fault-injector.ts';
import { type MatrixStack, startMatrixStack } from './matrix-stack.ts';
import { SCENARIOS, type Scenario } from './scenarios.ts';
import { type CallOutcome, type OperationName, type Outcome, patiently, Subject } from './subject.ts';

export type Verdict =
  | { readonly kind: 'holds'; readonly outcome: string }
  | { readonly kind: 'not applicable'; readonly reason: string }
  /** `missed`: the fault never met its step. */
  | { readonly kind: 'broken'; readonly reason: string; readonly missed?: boolean };

export interface CellResult {
  readonly row: Row;
  readonly column: Column;
  readonly verdict: Verdict;
}

export interface MatrixResult {
  readonly rows: readonly Row[];
  readonly columns: readonly Column[];
  readonly cells: readonly CellResult[];
  /** Scenarios that don't do what they declare, steps that none reaches, and findings of the doctor on no cell of the matrix. */
  readonly problems: readonly string[];
}

export interface MatrixOptions {
  /** Only rows whose `workflow.activity` contains this. */
  readonly row?: string | undefined;
  /** Only these columns; all of them by default. */
  readonly columns?: readonly Column[] | undefined;
  /** Only these cells; all of them by default. */
  readonly cells?: ((row: Row, column: Column) => boolean) | undefined;
  readonly onCell?: (cell: CellResult) => void;
  readonly onPhase?: (phase: string) => void;
}

const CONCURRENT_CELLS = 20;
const LOOK_EVERY_MS = 3_000;
const REST_MS = 60_000;
const STRIKE_MS = 60_000;
const MAX_MISSES = 3;
const REACHED_MS = 60_000;

/** What an instance may show the moment its operation has succeeded. */
const AT_ONCE: Readonly<Record<OperationName, readonly ExternalState[]>> = {
  start: ['starting', 'running'],
  migrate: ['migrating', 'running'],
  stop: ['running', 'migrating', 'stopping', 'stopped'],
};

/** Brings up a stack, runs the matrix or a part of it, and takes the stack down. */
export async function runMatrix(options: MatrixOptions = {}): Promise<MatrixResult> {
  const stack = await startMatrixStack();
  try {
    return await new MatrixRun(stack, options).run();
  } finally {
    await stack.close();
  }
}

interface Begun {
  readonly subject: Subject;
  readonly row: Row;
  readonly column: Column | null;
  error: unknown;
}

class MatrixRun {
  readonly #stack: MatrixStack;
  readonly #options: MatrixOptions;
  readonly #cells: CellResult[] = [];
  readonly #problems: string[] = [];
  /** The cell that an instance was made for. */
  readonly #owners = new Map<string, CellResult>();
  readonly #findings = new Map<string, Finding>();
  readonly #sleds = new SledClient();

  constructor(stack: MatrixStack, options: MatrixOptions) {
    this.#stack = stack;
    this.#options = options;
  }

  async run(): Promise<MatrixResult> {
    const print = this.#options.onPhase ?? (() => {});
    print('scenarios without a fault');
    const rows = (await this.#findRows()).filter(({ scenario, activity }) =>
      `${scenario.workflow}.${activity}`.includes(this.#options.row ?? ''),
    );
    const columns = this.#options.columns ?? COLUMNS;

    const watch = this.#watch();
    print('faults of one instance');
    try {
      await this.#together(
        rows.filter(({ scenario }) => !scenario.alone),
        columns,
      );
    } finally {
      watch.stop();
      await watch.ended;
    }
    const alone = rows.filter(({ scenario }) => scenario.alone);
    if (alone.length > 0) {
      print('passes of the loops');
      await this.#stack.runLoops([]);
      for (const row of alone)
        for (const column of columns.filter((each) => each.disaster === undefined))
          if (this.#wanted(row, column)) await this.#cell(row, column);
      await this.#stack.runLoops(RECONCILERS);
    }
    for (const column of columns.filter((each) => each.disaster !== undefined)) {
      print(column.head);
      await this.#disaster(rows, column);
    }
    print('the doctor, at rest');
    await this.#examineAtRest();
    this.#sleds.close();
    return { rows, columns, cells: this.#judged(), problems: this.#problems };
  }

  /** Runs every scenario as it is. What it reaches becomes rows; each step belongs to the first scenario that reaches it. */
  async #findRows(): Promise<Row[]> {
    const reached = new Map<Scenario, readonly SeenStep[]>();
    const play = async (scenario: Scenario) => {
      const row: Row = {
        scenario,
        activity: '',
        title: '',
        isCompensation: false,
        isSaga: false,
        atOnce: false,
        calls: new Set(),
      };
      let verdict: Verdict = { kind: 'broken', reason: '', missed: true };
      for (let misses = 0; verdict.kind === 'broken' && verdict.missed && misses < MAX_MISSES; misses++) {
        const begun = await this.#begin(row, null);
        verdict = await this.#play(begun, null, (seen) => {
          reached.set(scenario, [...(reached.get(scenario) ?? []), ...seen]);
        });
      }
      if (verdict.kind === 'broken')
        this.#problems.push(`scenario "${scenario.name}", without a fault: ${verdict.reason}`);
    };
    /** A step that happens only sometimes may be missed on a busy machine, since something else was quicker. */
    const replayMissed = async (scenarios: readonly Scenario[]) => {
      for (let misses = 1; misses < MAX_MISSES; misses++) {
        for (const scenario of scenarios) if (missesStep(scenario.workflow, reached)) await play(scenario);
      }
    };
    const together = SCENARIOS.filter(({ alone }) => !alone);
    const alone = SCENARIOS.filter((scenario) => scenario.alone);
    await this.#stack.runLoops(['updater']);
    await Promise.all(together.map(play));
    await replayMissed(together);
    await this.#stack.runLoops([]);
    for (const scenario of alone) await play(scenario);
    await replayMissed(alone);
    await this.#stack.runLoops(RECONCILERS);

    const rows: Row[] = [];
    for (const [workflow, declared] of Object.entries(SAGA_STEPS) as [SagaType, SagaSteps][]) {
      const scenarios = SCENARIOS.filter((scenario) => scenario.workflow === workflow);
      if (scenarios.length === 0) {
        this.#problems.push(`${workflow}: no scenario in test/matrix/scenarios.ts is for this workflow; add one`);
        continue;
      }
      for (const step of [...declared.steps, ...declared.compensations]) {
        const seenBy = scenarios.map((scenario) =>
          (reached.get(scenario) ?? []).filter(
            (seen) => seen.workflowType === workflow && seen.activity === step.activity,
          ),
        );
        const index = seenBy.findIndex((seen) => seen.length > 0);
        const scenario = scenarios[index];
        if (scenario === undefined) {
          this.#problems.push(`${workflow}.${step.activity}: no scenario of the workflow reaches this step; add one`);
          continue;
        }
        rows.push({
          scenario,
          activity: step.activity,
          title: step.title,
          isCompensation: declared.compensations.some(({ activity }) => activity === step.activity),
          isSaga: declared.compensations.length > 0,
          atOnce: (seenBy[index] ?? []).some(({ isLocal }) => isLocal),
          calls: new Set((seenBy[index] ?? []).flatMap((seen): FaultCall[] => [...seen.calls])),
        });
      }
    }
    return rows;
  }

  /** Cells whose fault is one instance's own: many at a time. Those that wait for time-outs begin first. */
  async #together(rows: readonly Row[], columns: readonly Column[]): Promise<void> {
    const own = columns.filter((column) => column.disaster === undefined);
    const queue = [...own]
      .sort((a, b) => Number(b.head.startsWith('late')) - Number(a.head.startsWith('late')))
      .flatMap((column) => rows.map((row) => ({ row, column })))
      .filter(({ row, column }) => this.#wanted(row, column));
    const work = async () => {
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) await this.#cell(next.row, next.column);
    };
    await Promise.all(Array.from({ length: CONCURRENT_CELLS }, work));
  }

  #wanted(row: Row, column: Column): boolean {
    return this.#options.cells?.(row, column) ?? true;
  }

  async #cell(row: Row, column: Column): Promise<void> {
    const reason = column.notApplicable(row);
    if (reason !== null) this.#record(row, column, { kind: 'not applicable', reason });
    else {
      let begun = await this.#begin(row, column);
      let verdict = await this.#play(begun, null);
      // On a busy machine a scenario may miss its step, since something else was quicker; again and again is no accident.
      for (let misses = 1; verdict.kind === 'broken' && verdict.missed && misses < MAX_MISSES; misses++) {
        begun = await this.#begin(row, column);
        verdict = await this.#play(begun, null);
      }
      this.#record(row, column, verdict, begun.subject);
    }
  }

  /** Every row at its step, then the disaster, then on; once more for those that missed their step. */
  async #disaster(rows: readonly Row[], column: Column, round = 1): Promise<void> {
    const applicable: Row[] = [];
    const missed: Row[] = [];
    for (const row of rows) {
      const reason = column.notApplicable(row);
      if (reason === null) applicable.push(row);
      else this.#record(row, column, { kind: 'not applicable', reason });
    }
    if (column.disaster === 'worker') await this.#stack.moveToVictim();
    const begun = await Promise.all(applicable.map((row) => this.#begin(row, column)));
    let arrived = 0;
    let over = 0;
    let strike = () => {};
    const struck = new Promise<void>((resolve) => {
      strike = resolve;
    });
    const playing = begun.map(async (each) => {
      const verdict = await this.#play(each, () => {
        arrived += 1;
        return struck;
      });
      over += 1;
      if (verdict.kind === 'broken' && verdict.missed && round < MAX_MISSES) missed.push(each.row);
      else this.#record(each.row, column, verdict, each.subject);
    });
    await waitUntil(() => arrived + over >= begun.length, '', STRIKE_MS).catch(() => {});
    await Promise.all([this.#strike(column.disaster ?? 'postgres', strike), ...playing]);
    if (missed.length > 0) await this.#disaster(missed, column, round + 1);
  }

  async #strike(disaster: Disaster, struck: () => void): Promise<void> {
    if (disaster === 'postgres') {
      await this.#stack.killPostgres();
      struck();
      await this.#stack.restartPostgres();
    } else {
      await this.#stack.killVictim();
      struck();
      await this.#stack.moveBack();
    }
  }

  async #begin(row: Row, column: Column | null): Promise<Begun> {
    const subject = await Subject.create(this.#stack);
    const begun: Begun = { subject, row, column, error: null };
    await row.scenario.prepare(subject).catch((error: unknown) => {
      begun.error = error;
    });
    return begun;
  }

  async #play(
    begun: Begun,
    disaster: (() => Promise<void>) | null,
    onReached: (seen: readonly SeenStep[]) => void = () => {},
  ): Promise<Verdict> {
    const { subject, row, column } = begun;
    try {
      if (begun.error !== null) throw begun.error;
      return { kind: 'holds', outcome: await playCell(subject, row, column, disaster, onReached) };
    } catch (error) {
      const reason = `${error instanceof Error ? error.message : error} (instance ${subject.id})`;
      return { kind: 'broken', reason, missed: error instanceof NotReached };
    } finally {
      subject.release();
    }
  }

  #record(row: Row, column: Column, verdict: Verdict, subject?: Subject): void {
    const cell: CellResult = { row, column, verdict };
    this.#cells.push(cell);
    if (subject !== undefined) this.#owners.set(subject.id, cell);
    this.#options.onCell?.(cell);
  }

  /** Looks again and again for what must never be, while the cells run. */
  #watch(): { stop(): void; readonly ended: Promise<void> } {
    let on = true;
    const look = async () => {
      while (on) {
        this.#keep(await patiently(() => this.#examine(false)));
        await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS).unref());
      }
    };
    return {
      stop: () => {
        on = false;
      },
      ended: look(),
    };
  }

  async #examineAtRest(): Promise<void> {
    let found = await this.#examine(true);
    const end = performance.now() + REST_MS;
    while (found.some((finding) => finding.holds === 'at rest') && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      found = await this.#examine(true);
    }
    this.#keep(found);
  }

  async #examine(atRest: boolean): Promise<readonly Finding[]> {
    const { findings } = await examine({
      db: this.#stack.database.db,
      temporal: this.#stack.temporal,
      sleds: this.#sleds,
      atRest,
      journal: 'required',
      guestLog: this.#stack.allSleds.flatMap(({ agent }) => agent.faults.guestLog()),
    });
    return findings;
  }

  #keep(findings: readonly Finding[]): void {
    for (const finding of findings) this.#findings.set(`${finding.rule} ${finding.message}`, finding);
  }

  /** The cells with what the doctor found of their instances. */
  #judged(): CellResult[] {
    const byCell = new Map<CellResult, string[]>();
    for (const finding of this.#findings.values()) {
      const cell = this.#owners.get(finding.instanceId ?? '');
      const text = `the doctor (${finding.invariant}, ${finding.rule}): ${finding.message}`;
      if (cell === undefined) this.#problems.push(text);
      else byCell.set(cell, [...(byCell.get(cell) ?? []), text]);
    }
    return this.#cells.map((cell) => {
      const found = byCell.get(cell);
      if (found === undefined) return cell;
      const reasons = cell.verdict.kind === 'broken' ? [cell.verdict.reason, ...found] : found;
      return { ...cell, verdict: { kind: 'broken', reason: reasons.join('; ') } };
    });
  }
}

/** Whether no scenario has reached a declared step of this workflow. */
function missesStep(workflow: SagaType, reached: ReadonlyMap<Scenario, readonly SeenStep[]>): boolean {
  const { steps, compensations }: SagaSteps = SAGA_STEPS[workflow];
  const seen = [...reached]
    .filter(([scenario]) => scenario.workflow === workflow)
    .flatMap(([, of]) => of.filter(({ workflowType }) => workflowType === workflow).map(({ activity }) => activity));
  return [...steps, ...compensations].some(({ activity }) => !seen.includes(activity));
}

/** The run without a fault finds the steps: what it leaves to another workflow, as to a clean-up, belongs to them. */
async function reachesWorkflow(subject: Subject, { scenario }: Row, column: Column | null): Promise<void> {
  if (column !== null) return;
  await waitUntil(
    () => subject.stack.injector.seen(subject.id).some(({ workflowType }) => workflowType === scenario.workflow),
    `no step of ${scenario.workflow} was reached`,
    REACHED_MS,
  ).catch((error: Error) => {
    throw new NotReached(error.message);
  });
}

/** Plays one cell to its end. Returns how the operation ended; throws what is wrong. */
async function playCell(
  subject: Subject,
  row: Row,
  column: Column | null,
  disaster: (() => Promise<void>) | null,
  onReached: (seen: readonly SeenStep[]) => void,
): Promise<string> {
  const { scenario } = row;
  const heldBefore = await subject.holds();
  const course: Course = column?.arrange(subject, row, disaster ?? (() => Promise.resolve())) ?? {};
  const call = scenario
    .act(subject, course.waitSeconds === undefined ? {} : { waitSeconds: course.waitSeconds })
    .then(async (outcome) => ({ outcome, record: await subject.record(), held: await subject.holds() }));
  const [first] = await Promise.all([call, course.during?.()]);
  await course.answered?.();
  subject.liftFaults();
  // A pass that could not see its way finds nothing: the next one does.
  if (scenario.alone && (await subject.record()).externalState !== scenario.success) await scenario.act(subject, {});
  let answer: { outcome: Outcome; record: { externalState: ExternalState }; held: string[] };
  if (first.outcome.kind === 'open') {
    if (scenario.operation !== null) {
      const transit = [...AT_ONCE[scenario.operation], scenario.before];
      expectState('while the operation is open it', first.record.externalState, transit);
    }
    const outcome = await subject.follow(first.outcome.operationId);
    answer = { outcome, record: await subject.record(), held: await subject.holds() };
  } else answer = { ...first, outcome: first.outcome };

  const expectation: Expectation = column?.expects(row) ?? 'same';
  checkOutcome(expectation, scenario, answer.outcome);
  const undone = answer.outcome.kind === 'undone';
  if (scenario.operation !== null && expectation !== 'cut off') {
    const lost = column?.head === 'VMM lost' ? (['failed'] as const) : [];
    expectState(
      'when the call returned it',
      answer.record.externalState,
      undone ? [scenario.before, ...lost] : AT_ONCE[scenario.operation],
    );
    const more = answer.held.filter((held) => !heldBefore.includes(held));
    if (undone && more.length > 0) throw new Error(`when the failed call returned it held ${more.join(', ')} of it`);
  }

  let next: OperationName;
  if (undone && scenario.operation !== null && expectation !== 'cut off') {
    await reachesWorkflow(subject, row, column);
    onReached([...subject.stack.injector.seen(subject.id)]);
    // The very next call, without a moment between.
    next = scenario.operation;
  } else {
    const ends: ExternalState[] =
      expectation === 'cut off' ? [scenario.before, scenario.success] : [undone ? scenario.before : scenario.success];
    const { externalState } = await subject.settles(ends, { age: true });
    await reachesWorkflow(subject, row, column);
    onReached([...subject.stack.injector.seen(subject.id)]);
    next = externalState === 'running' ? 'migrate' : 'start';
  }
  // A success is followed by another one where something is still to come; else the stop below is what comes next.
  if (!undone && next === 'migrate' && course.afterwards === undefined && column?.disaster === undefined)
    return end(subject, 'done');
  const called = await subject.call(next);
  const second = called.kind === 'open' ? await subject.follow(called.operationId) : called;
  if (second.kind !== 'succeeded') throw new Error(`the next ${next} failed: ${describeOutcome(second)}`);
  await subject.settles(['running']);
  if (course.afterwards !== undefined) {
    await course.afterwards();
    await subject.settles(['running']);
  }
  return end(subject, undone ? 'undone' : 'done');
}

/** Stops and deletes what must be whole again. */
async function end(subject: Subject, outcome: string): Promise<string> {
  subject.release();
  await subject.call('stop');
  await subject.settles(['stopped']);
  const held = await subject.holds();
  if (held.length > 0) throw new Error(`stopped, it still holds ${held.join(', ')}`);
  await subject.stack.client.deleteInstance(subject.id);
  return outcome;
}

function checkOutcome(expectation: Expectation, scenario: Scenario, outcome: Outcome): void {
  if (outcome.kind === 'undone' && scenario.operation !== null && ![409, 503, 507].includes(outcome.status))
    throw new Error(`the call failed with ${describeOutcome(outcome)}`);
  const wanted =
    expectation === 'same' ? scenario.plain : expectation === 'undone' || expectation === 'cut off' ? 'undone' : null;
  if (wanted !== null && wanted !== 'either' && outcome.kind !== wanted)
    throw new Error(`the operation should have been ${wanted}, and was ${describeOutcome(outcome)}`);
  if (expectation === 'cut off' && outcome.kind === 'undone' && outcome.status !== 409)
    throw new Error(`the caller of a terminated operation got ${describeOutcome(outcome)}`);
}

function expectState(when: string, externalState: ExternalState, allowed: readonly ExternalState[]): void {
  if (!allowed.includes(externalState))
    throw new Error(`${when} showed ${externalState}, not ${[...new Set(allowed)].join(' or ')}`);
}

function describeOutcome(outcome: CallOutcome): string {
  return outcome.kind === 'undone' ? `undone: ${outcome.status} ${outcome.message}` : outcome.kind;
}
