/**
 * What brings each workflow to each of its steps. A workflow that is added to `SAGA_STEPS` needs a scenario here; a step
 * that is added to a workflow joins by itself if one of these reaches it, and fails the matrix if none does.
 */
import { sql } from 'drizzle-orm';
import { applyReport } from '../../db/transactions/apply-report.ts';
import type { SagaType } from '../../model/saga-steps.ts';
import type { ExternalState } from '../../model/states.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { sledVmmState } from '../../wire/sled-protocol.ts';
import { silence } from '../support/harness.ts';
import { NotReached } from './fault-injector.ts';
import { ATTEMPTS, type CallOutcome, type OperationName, type Subject } from './subject.ts';

export interface Scenario {
  readonly name: string;
  /** The workflow whose steps it is for. */
  readonly workflow: SagaType;
  /** The operation whose caller is answered; `null` when nobody's call is under test any more. */
  readonly operation: OperationName | null;
  /** What the instance shows before, and again after a failure. */
  readonly before: ExternalState;
  /** How it ends without a fault of the matrix; `either` where the caller's own saga may get the failure or not. */
  readonly plain: 'succeeded' | 'undone' | 'either';
  /** What the instance shows at rest after success. */
  readonly success: ExternalState;
  /** Brings the instance to where the operation begins. */
  prepare(subject: Subject): Promise<void>;
  /** The operation. */
  act(subject: Subject, options: { waitSeconds?: number }): Promise<CallOutcome>;
  /** A pass of a loop: it runs alone, since it sees every instance. */
  readonly alone?: boolean;
}

const TICK_MS = 30;
const MAX_PASSES = 3;
const WAIT_MS = 60_000;

async function stopped(): Promise<void> {}

/** Has the instance run on a sled of its own, where nothing else is. */
async function runningAlone(subject: Subject) {
  await running(subject);
  const small = await subject.stack.addSmallSled();
  const there = await subject.call('migrate', { to: small });
  if (there.kind !== 'succeeded') throw new Error(`it could not be moved: ${JSON.stringify(there)}`);
  await subject.settles(['running']);
  return small;
}

async function running(subject: Subject): Promise<void> {
  const started = await subject.call('start');
  if (started.kind !== 'succeeded') throw new Error(`it could not be started: ${JSON.stringify(started)}`);
  await subject.waitForState(['running']);
}

/** Ends a saga by hand once a step of it has arrived, and returns its caller's error. */
async function terminated(subject: Subject, call: Promise<CallOutcome>, workflowId: string): Promise<void> {
  await subject.stack.temporal.workflow.getHandle(workflowId).terminate('the scenario');
  const outcome = await call;
  if (outcome.kind !== 'undone' || outcome.status !== 409)
    throw new Error(`the terminated operation's caller got ${JSON.stringify(outcome)}`);
}

/** Waits until the scan has found the operation that was cut off, and follows it to its end. */
async function found(subject: Subject): Promise<CallOutcome> {
  const operation = await subject.newestOperation();
  if (operation === null) throw new Error('there is no operation');
  await subject.age();
  return subject.follow(operation.id);
}

/** Runs a pass of a loop, and again where it was cut off or given up: the next pass makes up for it. */
async function pass(subject: Subject, workflow: SagaType, ...args: unknown[]): Promise<CallOutcome> {
  let outcome = await subject.run(workflow, ...args);
  for (let given = 1; outcome.kind !== 'succeeded' && given < MAX_PASSES; given++)
    outcome = await subject.run(workflow, ...args);
  return outcome;
}

export const SCENARIOS: readonly Scenario[] = [
  {
    name: 'a start',
    workflow: 'instanceStart',
    operation: 'start',
    before: 'stopped',
    success: 'running',
    plain: 'succeeded',
    prepare: stopped,
    act: (subject, options) => subject.call('start', options),
  },
  {
    name: 'a start that its sled refuses to run',
    workflow: 'instanceStart',
    operation: 'start',
    before: 'stopped',
    success: 'running',
    plain: 'undone',
    prepare: stopped,
    async act(subject, options) {
      // What a sled refused it refuses again: the task may be done again from its beginning.
      subject.onSleds({ call: 'state:running', act: { type: 'refuse', status: 409 } });
      const unwinds = subject.plan({ workflowType: 'instanceStart', activity: 'beginUnwind', observe: true });
      const call = subject.call('start', options);
      await unwinds.waitFor('arrived');
      return call;
    },
  },
  {
    name: 'a start that is told failed while its guest runs',
    workflow: 'instanceStart',
    operation: 'start',
    before: 'stopped',
    success: 'running',
    plain: 'succeeded',
    prepare: stopped,
    async act(subject, options) {
      const command = subject.plan({
        workflowType: 'instanceStart',
        activity: 'runVmm',
        holdAfter: true,
        fail: 'final',
        times: ATTEMPTS,
      });
      const call = subject.call('start', options);
      await command.waitFor('ran');
      await subject.waitForState(['running']);
      command.release('after');
      await command.waitFor('ended');
      command.drop();
      return call;
    },
  },
  {
    name: 'a start whose sled gives no answer',
    workflow: 'instanceStart',
    operation: 'start',
    before: 'stopped',
    success: 'running',
    plain: 'succeeded',
    prepare: stopped,
    async act(subject, options) {
      const lifts = subject.stack.sleds.map(({ id, agent }) => ({
        id,
        lift: agent.faults.plant({ call: 'register', act: { type: 'drop_before' }, instance_name: subject.name }),
      }));
      const call = subject.call('start', options);
      await subject.waitForState(['starting']);
      const { active } = await subject.record();
      // The one that it is placed on stays silent to it; every other one would do.
      for (const { id, lift } of lifts) if (id !== active?.sledId) lift();
      return call;
    },
  },
  {
    name: 'a migration',
    workflow: 'instanceMigrate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    prepare: running,
    act: (subject, options) => subject.call('migrate', options),
  },
  {
    name: 'a migration that its destination refuses',
    workflow: 'instanceMigrate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'undone',
    prepare: running,
    async act(subject, options) {
      subject.onSleds({ call: 'state:migration_target', act: { type: 'refuse', status: 409 } });
      const unwinds = subject.plan({ workflowType: 'instanceMigrate', activity: 'beginUnwind', observe: true });
      const call = subject.call('migrate', options);
      await unwinds.waitFor('arrived');
      return call;
    },
  },
  {
    name: 'a migration that is told failed while it is under way',
    workflow: 'instanceMigrate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    prepare: running,
    async act(subject, options) {
      const command = subject.plan({
        workflowType: 'instanceMigrate',
        activity: 'migrateIn',
        holdAfter: true,
        fail: 'final',
        times: ATTEMPTS,
      });
      const call = subject.call('migrate', options);
      await command.waitFor('ran');
      const { vmmId } = command.execution();
      await waitUntil(
        async () => {
          const { active, migration } = await subject.record();
          return active?.id === vmmId || ['in_progress', 'completed'].includes(migration?.targetState ?? '');
        },
        'the migration was never under way',
        WAIT_MS,
        TICK_MS,
      );
      command.release('after');
      await command.waitFor('ended');
      command.drop();
      return call;
    },
  },
  {
    name: 'a migration over what an earlier one left',
    workflow: 'instanceMigrate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    async prepare(subject) {
      await running(subject);
      subject.onSleds({ migration: { side: 'target', point: 'before' } });
      const update = subject.plan({
        workflowType: 'instanceUpdate',
        activity: 'updateInstance',
        holdBefore: true,
        times: ATTEMPTS,
      });
      const earlier = await subject.call('migrate');
      // On a busy machine its destination may have failed before it was heard to accept.
      if (earlier.kind !== 'succeeded') throw new NotReached(`the earlier migration: ${JSON.stringify(earlier)}`);
      await update.waitFor('arrived');
      subject.kept = update;
      await subject.waitForState(['running']);
    },
    async act(subject, options) {
      const signalling = subject.plan({ workflowType: 'instanceMigrate', activity: 'signalUpdate', observe: true });
      const call = subject.call('migrate', options);
      await Promise.race([signalling.waitFor('arrived'), call]);
      subject.kept?.release('before');
      subject.kept?.drop();
      return call;
    },
  },
  {
    name: 'a migration that is cancelled when its target is registered',
    workflow: 'instanceMigrate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    prepare: running,
    async act(subject, options) {
      const registering = subject.plan({
        workflowType: 'instanceMigrate',
        activity: 'registerVmm',
        holdAfter: true,
        times: ATTEMPTS,
      });
      const call = subject.call('migrate', options);
      await registering.waitFor('ran');
      await subject.cancel(registering.execution());
      registering.drop();
      registering.release('after');
      return call;
    },
  },
  {
    name: 'the update after a migration',
    workflow: 'instanceUpdate',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    prepare: running,
    act: (subject, options) => subject.call('migrate', options),
  },
  {
    name: 'a stop',
    workflow: 'instanceStop',
    operation: 'stop',
    before: 'running',
    success: 'stopped',
    plain: 'succeeded',
    prepare: running,
    act: (subject) => subject.call('stop'),
  },
  {
    name: 'a migration that its source gave up and whose target says nothing',
    workflow: 'vmmUnregister',
    operation: 'migrate',
    before: 'running',
    success: 'running',
    plain: 'either',
    prepare: running,
    async act(subject, options) {
      subject.onSleds({ migration: { side: 'source', point: 'middle' } });
      const command = subject.plan({
        workflowType: 'instanceMigrate',
        activity: 'migrateIn',
        holdBefore: true,
        times: ATTEMPTS,
      });
      const call = subject.call('migrate', options);
      await command.waitFor('arrived');
      const { target } = await subject.record();
      subject.silence(target?.id ?? '', subject.sled(target?.sledId));
      command.drop();
      command.release('before');
      return call;
    },
  },
  {
    name: 'a start that was terminated before its sled was told',
    workflow: 'vmmUnwind',
    operation: null,
    before: 'stopped',
    success: 'running',
    plain: 'undone',
    async prepare(subject) {
      const command = subject.plan({
        workflowType: 'instanceStart',
        activity: 'runVmm',
        holdBefore: true,
        run: 'never',
        times: ATTEMPTS,
      });
      const call = subject.call('start');
      await command.waitFor('arrived');
      await terminated(subject, call, workflowIds.start(subject.id));
      command.drop();
      command.release('before');
    },
    act: found,
  },
  {
    name: 'a migration that was terminated before its destination was told',
    workflow: 'vmmUnwind',
    operation: null,
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    async prepare(subject) {
      await running(subject);
      const command = subject.plan({
        workflowType: 'instanceMigrate',
        activity: 'migrateIn',
        holdBefore: true,
        run: 'never',
        times: ATTEMPTS,
      });
      const call = subject.call('migrate');
      await command.waitFor('arrived');
      await terminated(subject, call, workflowIds.migrate(subject.id));
      command.drop();
      command.release('before');
    },
    act: found,
  },
  {
    name: 'a start that was terminated while its guest ran',
    workflow: 'vmmUnwind',
    operation: null,
    before: 'stopped',
    success: 'running',
    plain: 'succeeded',
    async prepare(subject) {
      subject.onSleds({ call: 'state:running', act: { type: 'drop_after' } });
      const call = subject.call('start');
      await subject.waitForState(['running']);
      await terminated(subject, call, workflowIds.start(subject.id));
    },
    act: found,
  },
  {
    name: 'a pass of the watcher that finds a VMM lost',
    workflow: 'watcher',
    operation: null,
    before: 'running',
    success: 'failed',
    plain: 'succeeded',
    alone: true,
    async prepare(subject) {
      await running(subject);
      const { active } = await subject.record();
      subject.sled(active?.sledId).agent.faults.lose(active?.id ?? '');
    },
    act: (subject) => pass(subject, 'watcher'),
  },
  {
    name: 'a pass of the scan that finds an update whose signal was lost',
    workflow: 'updaterScan',
    operation: null,
    before: 'stopping',
    success: 'stopped',
    plain: 'succeeded',
    alone: true,
    async prepare(subject) {
      await running(subject);
      const { active } = await subject.record();
      const [vmmId, { agent }] = [active?.id ?? '', subject.sled(active?.sledId)];
      subject.silence(vmmId, subject.sled(active?.sledId));
      agent.faults.halt(vmmId);
      const read = async () => sledVmmState.parse(await (await fetch(`${agent.url}/vmms/${vmmId}/state`)).json());
      await waitUntil(
        async () => (await read()).vmm_state.state === 'destroyed',
        'the guest never halted',
        WAIT_MS,
        TICK_MS,
      );
      // The report is written, and then whoever wrote it dies before the signal.
      await applyReport(subject.stack.database.db, vmmId, await read());
    },
    act: (subject) => pass(subject, 'updaterScan'),
  },
  {
    name: 'a pass of the reaper that finds an abandoned VMM',
    workflow: 'reaper',
    operation: null,
    before: 'stopped',
    success: 'stopped',
    plain: 'succeeded',
    alone: true,
    async prepare(subject) {
      await running(subject);
      const { active } = await subject.record();
      await subject.call('stop');
      await subject.settles(['stopped']);
      // As a fault of another time may have left it.
      await subject.stack.database.db.execute(sql`
        UPDATE vmm SET time_deleted = NULL WHERE id = ${active?.id}`);
    },
    act: (subject) => pass(subject, 'reaper'),
  },
  {
    name: 'a pass of fencing that finds a sled whose lease has lapsed',
    workflow: 'fencing',
    operation: null,
    before: 'running',
    success: 'failed',
    plain: 'succeeded',
    alone: true,
    async prepare(subject) {
      const small = await runningAlone(subject);
      // Its guests are off and it is silent, and has been for longer than its lease; whatever befalls PostgreSQL is short beside that.
      silence(small);
      await small.agent.hypervisor.close();
      await subject.stack.database.db.execute(sql`
        UPDATE sled SET lease_ms = 3600000, fencing_since = now() - interval '1 day', lease_renewed_at = now() - interval '2 hours'
        WHERE id = ${small.id}`);
    },
    act: (subject) => pass(subject, 'fencing'),
  },
  {
    name: 'a pass of auto-restart that finds a failed instance',
    workflow: 'autoRestart',
    operation: null,
    before: 'failed',
    success: 'running',
    plain: 'succeeded',
    alone: true,
    async prepare(subject) {
      await running(subject);
      await subject.stack.client.updateInstance(subject.id, { auto_restart_policy: 'best_effort' });
      const { active } = await subject.record();
      subject.sled(active?.sledId).agent.faults.crash(active?.id ?? '');
      await subject.waitForState(['failed']);
    },
    act: (subject) => pass(subject, 'autoRestart'),
  },
  {
    name: 'a drain of a sled with one instance',
    workflow: 'sledDrain',
    operation: null,
    before: 'running',
    success: 'running',
    plain: 'succeeded',
    async prepare(subject) {
      await runningAlone(subject);
    },
    async act(subject) {
      const { active } = await subject.record();
      const drained = await pass(subject, 'sledDrain', { sledId: active?.sledId, parallel: 1 });
      if ((await subject.record()).active?.sledId === active?.sledId) throw new Error('the drain left it where it was');
      return drained;
    },
  },
];
