/** Workflow tasks to lose: for each step that a saga does within its task, how it is come to, and how it must end all the same. */
import { sql } from 'drizzle-orm';
import { MooringApiError } from '../../client/mooring-client.ts';
import type { InstanceRecord } from '../../db/queries/read-instance.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { SAGA_STEPS, type SagaType } from '../../model/saga-steps.ts';
import type { ExternalState, OperationKind } from '../../model/states.ts';
import type { UnwindInput } from '../../model/workflow-inputs.ts';
import { TASK_QUEUE, UPDATE_TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import type { Fault } from '../../sled-agent/faults.ts';
import type { FaultPlan } from '../matrix/fault-injector.ts';
import type { Harness } from '../support/harness.ts';
import { unwindError } from '../support/saga-steps.ts';
import { eventually } from '../support/wait.ts';

/** Sagas whose steps are activities in any case: no workflow task has a step of theirs. */
export const WITHOUT_STEPS_IN_THE_TASK: readonly SagaType[] = [
  'sledDrain',
  'watcher',
  'updaterScan',
  'reaper',
  'fencing',
  'autoRestart',
];
/** Steps that no scenario comes to, and why. */
export const LEFT_OUT: Readonly<Record<string, string>> = {
  'instanceStart/readOtherSleds':
    'it only reads, and an activity comes before it; that what follows may be done twice is in test/database/silent-sleds.test.ts',
  'instanceMigrate/signalUpdate': 'a timer follows it, which ends its workflow task; it is one signal, sent again',
};

export type End = 'succeeded' | 'undone';
export type Point = 'before' | 'after';

/** What a scenario needs of the test around it. */
export interface Surroundings {
  readonly harness: Harness;
  /** How long a workflow task of the workflows under test may take, in milliseconds. */
  readonly taskTimeoutMs: number;
  /** Plans for the worker that prepares. */
  planHere(plan: Omit<FaultPlan, 'id'>): { arrived(): Promise<void>; ran(): Promise<void>; release(): void };
  /** Plans for the worker that is to lose its tasks. */
  planThere(plan: Omit<FaultPlan, 'id'>): { arrived(): Promise<void>; ran(): Promise<void>; release(): void };
}

export interface Scenario {
  readonly name: string;
  readonly workflow: SagaType;
  /** The steps at which its task is lost. */
  readonly steps: readonly string[];
  /** Whose outcome is on record. */
  readonly operation: OperationKind | null;
  /** What the instance shows at the end. */
  readonly shows: Readonly<Record<End, ExternalState>>;
  /** How it ends when the task is lost there. */
  ends(step: string, point: Point): End;
  /** Brings the instance to where the workflow begins, while an ordinary worker works. */
  prepare(subject: Subject): Promise<void>;
  /** Makes sure, while nobody works, that nothing of its preparation is under way any more. */
  settle?(subject: Subject): Promise<void>;
  /** Begins the workflow while nobody works; returns its id. */
  begin(subject: Subject): Promise<string>;
  /** What must happen between the workflow's beginning and the point at which its task is lost. */
  meanwhile?(subject: Subject): Promise<void>;
  /** What happens before the task is done again. */
  lost?(subject: Subject): Promise<void> | void;
}

/** More than a step is tried while a test goes on. */
const ATTEMPTS = 10_000;
let made = 0;

/** An instance whose workflow loses its task. */
export class Subject {
  readonly id: string;
  readonly name: string;
  readonly around: Surroundings;
  /** What a scenario's beginning leaves to what comes after. */
  input: UnwindInput | null = null;
  leftover: string | null = null;
  lift: () => void = () => {};
  refused: { ran(): Promise<void>; release(): void } | null = null;

  private constructor(around: Surroundings, id: string, name: string) {
    this.around = around;
    this.id = id;
    this.name = name;
  }

  static async create(around: Surroundings): Promise<Subject> {
    made += 1;
    const name = `lost-${made}`;
    const id = await around.harness.create(name, { ncpus: 1, memory: 512 * 1024 ** 2 });
    return new Subject(around, id, name);
  }

  record(): Promise<InstanceRecord> {
    return this.around.harness.record(this.id);
  }

  async until(holds: (record: InstanceRecord) => boolean, what: string): Promise<void> {
    await eventually(async () => holds(await this.record()), `${this.name}: ${what}`);
  }

  async run(): Promise<void> {
    const { client, shows } = this.around.harness;
    // A machine that is busy answers 503, and has begun it all the same, or not.
    const start = () =>
      client.startInstance(this.id).catch((error: unknown) => {
        if (error instanceof MooringApiError && error.status === 503) return null;
        throw error;
      });
    await eventually(async () => (await start()) !== null, `${this.name} was never started`);
    await shows(this.id, 'running');
  }

  /** Plants a fault for its VMMs on every sled. */
  onSleds(fault: Fault): void {
    const named: Fault =
      'migration' in fault
        ? { migration: { ...fault.migration, instance_name: this.name } }
        : { ...fault, instance_name: this.name };
    const lifts = this.around.harness.stack.sleds.map(({ agent }) => agent.faults.plant(named));
    this.lift = () => {
      for (const lift of lifts) lift();
    };
  }

  async begin(workflow: SagaType, workflowId: string, input: unknown): Promise<string> {
    await this.around.harness.temporal.workflow.start(workflow, {
      workflowId,
      taskQueue: workflow === 'instanceUpdate' ? UPDATE_TASK_QUEUE : TASK_QUEUE,
      args: [input],
      workflowTaskTimeout: this.around.taskTimeoutMs,
    });
    return workflowId;
  }

  beginStart(): Promise<string> {
    return this.begin('instanceStart', workflowIds.start(this.id), { instanceId: this.id, reason: 'user' });
  }

  async beginMigration(): Promise<string> {
    const { there } = await this.around.harness.placed(this.id);
    return this.begin('instanceMigrate', workflowIds.migrate(this.id), {
      instanceId: this.id,
      destinationSledId: there.id,
    });
  }

  beginUnwind(): Promise<string> {
    if (this.input === null) throw new Error('nothing was terminated');
    return this.begin('vmmUnwind', workflowIds.unwind(this.input.vmmId), this.input);
  }

  /** Ends its open start or migration by hand, as an operator may, and keeps what the scan would unwind it with. */
  async terminate(kind: OperationKind): Promise<void> {
    const workflowId = kind === 'start' ? workflowIds.start(this.id) : workflowIds.migrate(this.id);
    await this.around.harness.temporal.workflow.getHandle(workflowId).terminate('the test');
    const { rows } = await this.around.harness.database.db.execute(
      sql`SELECT id, vmm_id FROM operation WHERE instance_id = ${this.id} AND kind = ${kind}`,
    );
    const [operationId, vmmId] = [String(rows.at(-1)?.id), String(rows.at(-1)?.vmm_id)];
    const error = unwindError('it was terminated');
    this.input = { kind, instanceId: this.id, operationId, vmmId, workflowId, spareRunning: true, error };
  }

  /** Has a step of a saga fail in the worker that prepares, without an effect, as long as it is tried. */
  neverHere(workflowType: SagaType, activity: string) {
    return this.around.planHere({
      workflowType,
      activity,
      subject: this.id,
      run: 'never',
      fail: 'retryable',
      times: ATTEMPTS,
    });
  }
}

const nothing = async () => {};
const running = (subject: Subject) => subject.run();
const always = (end: End) => () => end;
const refuse = { type: 'refuse', status: 409 } as const;
const UNWIND = ['beginUnwind', 'unregisterVmm', 'finishUnwind'] as const;
/** Where the sled refuses but once, the task that is done again succeeds, unless the unwind had begun. */
const unlessBegun = (step: string, point: Point): End =>
  step === 'beginUnwind' && point === 'before' ? 'succeeded' : 'undone';
const RUNS = { succeeded: 'running', undone: 'running' } as const;
const STARTS = { succeeded: 'running', undone: 'stopped' } as const;
const STOPS = { succeeded: 'stopped', undone: 'stopped' } as const;

/** Has the command of a start or migration run in the worker that loses its tasks, and be told as failed when the guest runs. */
function toldFailed(kind: OperationKind) {
  return {
    async begin(subject: Subject) {
      const [workflowType, activity] =
        kind === 'start' ? (['instanceStart', 'runVmm'] as const) : (['instanceMigrate', 'migrateIn'] as const);
      subject.refused = subject.around.planThere({
        workflowType,
        activity,
        subject: subject.id,
        holdAfter: true,
        fail: 'final',
      });
      return kind === 'start' ? subject.beginStart() : subject.beginMigration();
    },
    async meanwhile(subject: Subject) {
      await subject.refused?.ran();
      await subject.until(
        ({ externalState, migration }) =>
          kind === 'start'
            ? externalState === 'running'
            : migration === null || ['in_progress', 'completed'].includes(migration.targetState),
        'its guest never ran',
      );
      subject.refused?.release();
    },
  };
}

export const SCENARIOS: readonly Scenario[] = [
  {
    name: 'a start',
    workflow: 'instanceStart',
    steps: SAGA_STEPS.instanceStart.steps
      .map(({ activity }) => activity)
      .filter((activity) => !(`instanceStart/${activity}` in LEFT_OUT)),
    operation: 'start',
    shows: STARTS,
    ends: always('succeeded'),
    prepare: nothing,
    begin: (subject) => subject.beginStart(),
  },
  ...([false, true] as const).map(
    (once): Scenario => ({
      name: `a start that its sled refuses to run${once ? ', but once' : ''}`,
      workflow: 'instanceStart',
      steps: UNWIND,
      operation: 'start',
      shows: STARTS,
      ends: once ? unlessBegun : always('undone'),
      prepare: nothing,
      begin(subject) {
        subject.onSleds({ call: 'state:running', act: refuse });
        return subject.beginStart();
      },
      lost(subject) {
        if (once) subject.lift();
      },
    }),
  ),
  {
    name: 'a start that is told failed while its guest runs',
    workflow: 'instanceStart',
    steps: ['beginUnwind'],
    operation: 'start',
    shows: STARTS,
    ends: always('succeeded'),
    prepare: nothing,
    ...toldFailed('start'),
  },
  {
    name: 'a migration',
    workflow: 'instanceMigrate',
    steps: ['claimMigration', 'registerVmm', 'migrateIn'],
    operation: 'migrate',
    shows: RUNS,
    ends: always('succeeded'),
    prepare: running,
    begin: (subject) => subject.beginMigration(),
  },
  {
    name: 'a migration that its destination refuses',
    workflow: 'instanceMigrate',
    steps: UNWIND,
    operation: 'migrate',
    shows: RUNS,
    ends: always('undone'),
    prepare: running,
    begin(subject) {
      subject.onSleds({ call: 'state:migration_target', act: refuse });
      return subject.beginMigration();
    },
  },
  {
    name: 'a migration that is told failed while it is under way',
    workflow: 'instanceMigrate',
    steps: ['beginUnwind'],
    operation: 'migrate',
    shows: RUNS,
    ends: always('succeeded'),
    prepare: running,
    ...toldFailed('migrate'),
  },
  {
    name: 'a migration that is cancelled before it begins',
    workflow: 'instanceMigrate',
    steps: ['readMigrateInCommand', 'beginUnwind', 'finishUnwind'],
    operation: null,
    shows: RUNS,
    ends: always('undone'),
    prepare: running,
    async begin(subject) {
      const workflowId = await subject.beginMigration();
      await subject.around.harness.temporal.workflow.getHandle(workflowId).cancel();
      return workflowId;
    },
  },
  {
    name: 'the update after a guest has powered off',
    workflow: 'instanceUpdate',
    steps: ['updateInstance'],
    operation: null,
    shows: STOPS,
    ends: always('succeeded'),
    prepare: running,
    async begin(subject) {
      const { active } = await subject.record();
      const workflowId = workflowIds.update(subject.id);
      await subject.begin('instanceUpdate', workflowId, { instanceId: subject.id });
      subject.around.harness.sled(active?.sledId).agent.faults.halt(active?.id ?? '');
      await subject.until(({ active }) => active?.state === 'destroyed', 'its guest never powered off');
      return workflowId;
    },
  },
  {
    name: 'a stop',
    workflow: 'instanceStop',
    steps: ['deliverStop'],
    operation: null,
    shows: STOPS,
    ends: always('succeeded'),
    prepare: running,
    async begin(subject) {
      const workflowId = await subject.begin('instanceStop', workflowIds.stop(subject.id), { instanceId: subject.id });
      await subject.around.harness.client.stopInstance(subject.id);
      return workflowId;
    },
  },
  {
    name: 'the end of a VMM that a failed migration left over',
    workflow: 'vmmUnregister',
    steps: ['unregisterLeftover'],
    operation: null,
    shows: RUNS,
    ends: always('succeeded'),
    async prepare(subject) {
      await subject.run();
      const { harness } = subject.around;
      const { there } = await harness.placed(subject.id);
      subject.onSleds({ migration: { side: 'source', point: 'middle' } });
      const command = subject.around.planHere({
        workflowType: 'instanceMigrate',
        activity: 'migrateIn',
        subject: subject.id,
        holdBefore: true,
      });
      subject.neverHere('instanceUpdate', 'updateInstance');
      const call = harness.client.migrateInstance(subject.id, there.id);
      await command.arrived();
      const { target } = await subject.record();
      // Its source gives the migration up, and it says nothing itself.
      there.agent.faults.holdReports(true, target?.id ?? '');
      command.release();
      await call;
      await subject.until(
        ({ migration, active }) => migration?.sourceState === 'failed' && active?.state === 'running',
        'its source never gave it up',
      );
    },
    async settle(subject) {
      const { harness } = subject.around;
      // Else whoever works next would go on with it.
      await harness.temporal.workflow.getHandle(workflowIds.update(subject.id)).terminate('the test');
      const update = await commitUpdate(harness.database.db, subject.id);
      subject.leftover = update?.left.unregister[0] ?? null;
    },
    begin(subject) {
      const { leftover: vmmId } = subject;
      if (vmmId === null) throw new Error('nothing was left over');
      return subject.begin('vmmUnregister', workflowIds.unregister(vmmId), { vmmId });
    },
    lost(subject) {
      for (const { agent } of subject.around.harness.stack.sleds) agent.faults.holdReports(false);
    },
  },
  {
    name: 'the end of a start that was terminated before it was registered',
    workflow: 'vmmUnwind',
    steps: UNWIND,
    operation: 'start',
    shows: STARTS,
    ends: always('undone'),
    async prepare(subject) {
      const registering = subject.neverHere('instanceStart', 'registerVmm');
      await subject.beginStart();
      await registering.arrived();
      await subject.terminate('start');
    },
    begin: (subject) => subject.beginUnwind(),
  },
  {
    name: 'the end of a migration that was terminated when it was about to be commanded',
    workflow: 'vmmUnwind',
    steps: ['readMigrateInCommand', 'migrateIn'],
    operation: 'migrate',
    shows: RUNS,
    ends: always('succeeded'),
    async prepare(subject) {
      await subject.run();
      const commanding = subject.neverHere('instanceMigrate', 'migrateIn');
      await subject.beginMigration();
      await commanding.arrived();
      await subject.terminate('migrate');
    },
    begin: (subject) => subject.beginUnwind(),
  },
  {
    name: 'the end of a start that was terminated while its guest ran',
    workflow: 'vmmUnwind',
    steps: ['beginUnwind'],
    operation: 'start',
    shows: STARTS,
    ends: always('succeeded'),
    async prepare(subject) {
      subject.onSleds({ call: 'state:running', act: { type: 'drop_after' } });
      await subject.beginStart();
      await subject.until(({ externalState }) => externalState === 'running', 'it never ran');
      await subject.terminate('start');
      subject.lift();
    },
    begin: (subject) => subject.beginUnwind(),
  },
];
