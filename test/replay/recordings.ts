/** What is recorded: each saga's success, each step that fails, each stage of an unwind, the races, by the name of its file. */
import type { WorkflowHandle } from '@temporalio/client';
import type { ReconcilerName } from '../../model/reconcilers.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { CallFault, Fault, FaultCall } from '../../sled-agent/faults.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { type Harness, refused, silence } from '../support/harness.ts';
import {
  ATTRIBUTE_NAMES,
  giveAttributesBack,
  removeAttributes,
  untilWithoutAttributes,
} from '../support/search-attributes.ts';
import type { HeldStep, Recorder } from './recorder.ts';

/** Brings about what is to be recorded; returns the workflow, and its run where the id has several. */
type Recording = (recorder: Recorder) => Promise<{ readonly workflowId: string; readonly runId?: string }>;

const refuse = (call: FaultCall, status = 409, error_code?: string, times?: number): CallFault => ({
  call,
  act: { type: 'refuse', status, ...(error_code === undefined ? {} : { error_code }) },
  ...(times === undefined ? {} : { times }),
});
const busy = (call: FaultCall, times?: number) => refuse(call, 503, undefined, times);
const gone = (call: FaultCall) => refuse(call, 404, 'NO_SUCH_INSTANCE');
const delay = (call: FaultCall, ms: number): CallFault => ({ call, act: { type: 'delay', ms }, times: 1 });
const cut = (call: FaultCall, type: 'drop_before' | 'drop_after', times?: number): CallFault => ({
  call,
  act: { type },
  ...(times === undefined ? {} : { times }),
});

function plant(harness: Harness, ...faults: Fault[]): void {
  harness.everywhere(({ agent }) => {
    for (const fault of faults) agent.faults.plant(fault);
  });
}

/** A start that fails, or that succeeds after trouble, with these faults on every sled. */
const startWith = (...faults: Fault[]) => plainly(comingStart(...faults));

/** A migration with these faults on its destination. */
const migrateWith = (...faults: Fault[]) => plainly(comingMigration(...faults));

/** What a recording does, with a step of its workflow that is not settled within its task and goes on as an activity. */
function asActivity(workflowType: string, step: string, record: Recording): Recording {
  return async (recorder) => {
    const held = recorder.hold(step, '', { workflowType });
    const recorded = record(recorder);
    recorded.catch(() => {});
    // Its caller may have been answered before.
    await held.asActivity;
    held.release();
    const { workflowId, runId } = await recorded;
    const handle = recorder.harness.temporal.workflow.getHandle(workflowId, runId);
    await handle.result().catch(() => {});
    const { events } = await handle.fetchHistory();
    if (!events?.some((event) => event.activityTaskScheduledEventAttributes?.activityType?.name === step))
      throw new Error(`${step} never was an activity`);
    return { workflowId, ...(runId === undefined ? {} : { runId }) };
  };
}

/** A workflow, by its id, that is about to be begun, and what begins it and sees it to its end. */
interface Coming {
  readonly workflowId: string;
  begin(): Promise<unknown>;
}

/** The worker is lost with what it did: the server gives its task up, and it is done again from its beginning. */
function lost(prepare: (recorder: Recorder) => Promise<Coming>): Recording {
  return async (recorder) => {
    const { workflowId, begin } = await prepare(recorder);
    const handle = recorder.harness.temporal.workflow.getHandle(workflowId);
    const lostTasks = async () =>
      (await handle.fetchHistory()).events?.filter((event) => event.workflowTaskTimedOutEventAttributes) ?? [];
    recorder.atCompletion(workflowId, () =>
      waitUntil(async () => (await lostTasks()).length > 0, `${workflowId} never lost its task`, 60_000, 100),
    );
    await begin();
    await handle.result().catch(() => {});
    if ((await lostTasks()).length === 0) throw new Error('no task was lost');
    return { workflowId };
  };
}

/** A cancellation meets the completion: the server refuses that, and the task is done again from its beginning, cancelled. */
function cancelledWhileCompleting(prepare: (recorder: Recorder) => Promise<Coming>): Recording {
  return async (recorder) => {
    const { workflowId, begin } = await prepare(recorder);
    const handle = recorder.harness.temporal.workflow.getHandle(workflowId);
    recorder.atCompletion(workflowId, async () => void (await handle.cancel()));
    await begin();
    await handle.result().catch(() => {});
    expectUnhandled(await handle.fetchHistory(), 'the cancellation');
    return { workflowId };
  };
}

/** Throws unless the server refused a completion because something had come meanwhile. */
function expectUnhandled({ events }: Awaited<ReturnType<WorkflowHandle['fetchHistory']>>, what: string): void {
  // WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
  if (!(events ?? []).some((event) => event.workflowTaskFailedEventAttributes?.cause === 1))
    throw new Error(`${what} did not meet the completion`);
}

/** A start, on sleds with these faults. */
const comingStart =
  (...faults: Fault[]) =>
  async ({ harness }: Recorder): Promise<Coming> => {
    const id = await harness.create();
    plant(harness, ...faults);
    return { workflowId: workflowIds.start(id), begin: () => harness.client.startInstance(id).catch(() => {}) };
  };

/** A migration, to a sled with these faults. */
const comingMigration =
  (...faults: Fault[]) =>
  async ({ harness }: Recorder): Promise<Coming> => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    for (const fault of faults) there.agent.faults.plant(fault);
    const begin = () => harness.client.migrateInstance(id, there.id).catch(() => {});
    return { workflowId: workflowIds.migrate(id), begin };
  };

/** An update that finds that a start was unwound. */
async function comingUpdate({ harness }: Recorder): Promise<Coming> {
  const id = await harness.create();
  plant(harness, refuse('state:running'));
  await harness.stack.worker.setUpdates(false);
  await refused(harness.client.startInstance(id));
  const begin = async () => {
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).instance.activeVmmId === null, 'it was never cleared');
  };
  return { workflowId: workflowIds.update(id), begin };
}

async function comingStop({ harness }: Recorder): Promise<Coming> {
  const id = await harness.running();
  const begin = async () => {
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  };
  return { workflowId: workflowIds.stop(id), begin };
}

/** The clean-up of a migration's target that nobody names any more. */
async function comingUnregister({ harness }: Recorder): Promise<Coming> {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  await harness.stack.worker.setUpdates(false);
  // The source reports that it kept the guest; the destination has not reported.
  there.agent.faults.holdReports(true);
  const { target } = await migrationFailedBy(harness, id, there);
  const workflowId = workflowIds.unregister(target);
  const begin = async () => {
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).instance.targetVmmId === null, 'it was never cleared');
    await waitUntil(() => exists(harness, workflowId), 'nobody unregistered the leftover');
  };
  return { workflowId, begin };
}

/** The unwind of a start that was terminated before its sled was told. */
async function comingUnwind({ harness, hold }: Recorder): Promise<Coming> {
  const id = await harness.create();
  const step = hold('runVmm', id);
  harness.client.startInstance(id).catch(() => {});
  await step.reached;
  const vmmId = (await harness.record(id)).active?.id ?? '';
  const begin = () => unwoundAfter(harness, workflowIds.start(id), id, step);
  return { workflowId: workflowIds.unwind(vmmId), begin };
}

/** Begins what is coming, and nothing more. */
function plainly(prepare: (recorder: Recorder) => Promise<Coming>): Recording {
  return async (recorder) => {
    const { workflowId, begin } = await prepare(recorder);
    await begin();
    return { workflowId };
  };
}

const exists = (harness: Harness, workflowId: string) =>
  harness.temporal.workflow
    .getHandle(workflowId)
    .describe()
    .then(
      () => true,
      () => false,
    );

/** Begins a call and waits until its workflow has a pending activity of the given type. */
async function untilDoing(harness: Harness, workflowId: string, activity: string): Promise<void> {
  await waitUntil(
    async () => {
      const description = await harness.temporal.workflow
        .getHandle(workflowId)
        .describe()
        .catch(() => null);
      return (description?.raw.pendingActivities ?? []).some(
        (pending) => pending.activityType?.name === activity && (pending.attempt ?? 0) >= 1,
      );
    },
    `${workflowId} never came to ${activity}`,
    60_000,
    20,
  );
}

/** Starts a workflow past the API, which would not have begun it. An earlier run may be answered and not closed yet. */
async function directly(harness: Harness, type: string, workflowId: string, input: unknown) {
  await harness.temporal.workflow
    .getHandle(workflowId)
    .result()
    .catch(() => {});
  const handle = await harness.temporal.workflow.start(type, { workflowId, taskQueue: TASK_QUEUE, args: [input] });
  await handle.result().catch(() => {});
  return { workflowId, runId: handle.firstExecutionRunId };
}

/** Waits until a workflow has decided on all that it has received. */
async function untilDecided(harness: Harness, workflowId: string) {
  const handle = harness.temporal.workflow.getHandle(workflowId);
  let description = await handle.describe();
  await waitUntil(
    async () => {
      description = await handle.describe();
      return description.raw.pendingWorkflowTask == null;
    },
    `${workflowId} never decided`,
    60_000,
    10,
  );
  return description;
}

/** Runs an update in `rounds` rounds: a signal comes while the step of each one but the last is held. */
async function chain({ harness, hold }: Recorder, rounds: number): ReturnType<Recording> {
  const id = await harness.running();
  await harness.rests(id);
  const workflowId = workflowIds.update(id);
  await harness.temporal.workflow
    .getHandle(workflowId)
    .result()
    .catch(() => {});
  let step = hold('updateInstance', id);
  await harness.signalUpdate(id);
  const { runId } = await harness.temporal.workflow.getHandle(workflowId).describe();
  for (let round = 1; round < rounds; round++) {
    await step.reached;
    await harness.signalUpdate(id);
    // Continued as new: the rest belongs to the next run.
    if ((await untilDecided(harness, workflowId)).runId !== runId) break;
    const next = hold('updateInstance', id);
    step.release();
    step = next;
  }
  step.release();
  return { workflowId, runId };
}

/** Signals an update as it completes: the server refuses the completion, and hands the signal over. */
const signalledWhileCompleting: Recording = async ({ harness, atCompletion }) => {
  const id = await harness.running();
  await harness.rests(id);
  const workflowId = workflowIds.update(id);
  await harness.temporal.workflow
    .getHandle(workflowId)
    .result()
    .catch(() => {});
  atCompletion(workflowId, () => harness.signalUpdate(id));
  await harness.signalUpdate(id);
  const { runId } = await harness.temporal.workflow.getHandle(workflowId).describe();
  const handle = harness.temporal.workflow.getHandle(workflowId, runId);
  await handle.result();
  expectUnhandled(await handle.fetchHistory(), 'the signal');
  return { workflowId, runId };
};

/** A workflow that the scan began. */
async function untilBegun(harness: Harness, query: string): Promise<{ workflowId: string; runId: string }> {
  let found: { workflowId: string; runId: string } | null = null;
  await waitUntil(
    async () => {
      await harness.client.runReconciler('updater');
      for await (const { workflowId, runId } of harness.temporal.workflow.list({ query })) {
        found = { workflowId, runId };
        return true;
      }
      return false;
    },
    `no workflow came of ${query}`,
    60_000,
    100,
  );
  return found as unknown as { workflowId: string; runId: string };
}

/** Terminates a workflow whose step waits; the scan then has its VMM unwound by a workflow of its own. */
async function unwoundAfter(harness: Harness, workflowId: string, instanceId: string, step: HeldStep) {
  await step.reached;
  await harness.temporal.workflow.getHandle(workflowId).terminate('for a recording');
  harness.everywhere(({ agent }) => agent.faults.clear());
  return untilBegun(harness, `WorkflowType = "vmmUnwind" AND MooringInstanceId = "${instanceId}"`);
}

/** A start whose sled gives no answer while others do. */
async function startElsewhere({ harness }: Recorder): ReturnType<Recording> {
  const id = await harness.create();
  plant(harness, busy('register'));
  const started = harness.client.startInstance(id);
  await waitUntil(async () => (await harness.record(id)).active !== null, 'it was never placed');
  const { here } = await harness.placed(id);
  harness.everywhere(({ id: sledId, agent }) => sledId === here.id || agent.faults.clear());
  await started;
  return { workflowId: workflowIds.start(id) };
}

/** What a recording does while the namespace has no search attributes. */
function withoutAttributes(record: Recording): Recording {
  return async (recorder) => {
    const { harness } = recorder;
    await removeAttributes(harness, ATTRIBUTE_NAMES, true);
    try {
      await untilWithoutAttributes(harness);
      const { workflowId, runId } = await record(recorder);
      await harness.temporal.workflow
        .getHandle(workflowId, runId)
        .result()
        .catch(() => {});
      return { workflowId, ...(runId === undefined ? {} : { runId }) };
    } finally {
      await giveAttributesBack(harness);
    }
  };
}

/** A start whose sled refuses the second command, when it has reported that the guest runs. */
async function sparedStart({ harness, hold }: Recorder): ReturnType<Recording> {
  const id = await harness.create();
  plant(harness, cut('state:running', 'drop_after', 1), refuse('state:running'));
  const second = hold('runVmm', id, { skip: 1 });
  const started = harness.client.startInstance(id).catch(() => {});
  await second.reached;
  await harness.shows(id, 'running');
  second.release();
  await started;
  return { workflowId: workflowIds.start(id) };
}

/** A migration whose destination refuses the second command, when the guest is on its way or has arrived. */
async function sparedMigration({ harness, hold }: Recorder): ReturnType<Recording> {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  there.agent.faults.plant(cut('state:migration_target', 'drop_after', 1));
  there.agent.faults.plant(refuse('state:migration_target'));
  const second = hold('migrateIn', id, { skip: 1 });
  const migrated = harness.client.migrateInstance(id, there.id).catch(() => {});
  await second.reached;
  await waitUntil(async () => {
    const { active, migration } = await harness.record(id);
    return active?.sledId === there.id || ['in_progress', 'completed'].includes(migration?.targetState ?? '');
  }, 'it was never under way');
  second.release();
  await migrated;
  return { workflowId: workflowIds.migrate(id) };
}

/** A migration over what an earlier one left, which the update clears when it has been asked for. */
async function awaitsUpdate({ harness, hold }: Recorder): ReturnType<Recording> {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  await harness.stack.worker.setUpdates(false);
  there.agent.faults.plant({ migration: { side: 'target', point: 'middle' } });
  await harness.client.migrateInstance(id, there.id);
  await harness.shows(id, 'running');
  const second = hold('claimMigration', id, { skip: 1 });
  const again = harness.client.migrateInstance(id, there.id);
  await second.asActivity;
  await harness.stack.worker.setUpdates(true);
  await waitUntil(async () => (await harness.record(id)).instance.migrationId === null, 'it was never cleared');
  second.release();
  await again;
  return { workflowId: workflowIds.migrate(id) };
}

/** The unwind of a start that was terminated when its guest ran. */
async function sparedUnwind({ harness, hold }: Recorder): ReturnType<Recording> {
  const id = await harness.create();
  plant(harness, cut('state:running', 'drop_after', 1));
  const second = hold('runVmm', id, { skip: 1 });
  harness.client.startInstance(id).catch(() => {});
  await harness.shows(id, 'running');
  return unwoundAfter(harness, workflowIds.start(id), id, second);
}

/** What carries a migration forward that was terminated before its destination was told. */
async function carriedForward({ harness, hold }: Recorder): ReturnType<Recording> {
  const id = await harness.running();
  // The step of the migration, not the one of what carries it forward.
  const step = hold('migrateIn', workflowIds.migrate(id));
  const { there } = await harness.placed(id);
  harness.client.migrateInstance(id, there.id).catch(() => {});
  return unwoundAfter(harness, workflowIds.migrate(id), id, step);
}

export const RECORDINGS: Readonly<Record<string, Recording>> = {
  'instance-start.success': startWith(),
  'instance-start.joined': async ({ harness }) => {
    const id = await harness.create();
    plant(harness, delay('register', 300));
    await Promise.all([harness.client.startInstance(id), harness.client.startInstance(id)]);
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.already-started': async ({ harness }) => {
    const id = await harness.running();
    return directly(harness, 'instanceStart', workflowIds.start(id), { instanceId: id, reason: 'user' });
  },
  'instance-start.refused': async ({ harness }) => {
    const id = await harness.create(undefined, { ncpus: 200 });
    await refused(harness.client.startInstance(id));
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.register-refused': startWith(refuse('register')),
  'instance-start.register-silent': startWith(cut('register', 'drop_before')),
  'instance-start.elsewhere': startElsewhere,
  'instance-start.without-attributes': withoutAttributes(startWith()),
  'instance-start.unwound-without-attributes': withoutAttributes(startWith(refuse('state:running'))),
  'instance-start.register-retried': startWith(cut('register', 'drop_after', 1), busy('register', 1)),
  'instance-start.unwound': startWith(refuse('state:running')),
  'instance-start.running-gone': startWith(gone('state:running')),
  'instance-start.running-retried': startWith(busy('state:running', 2)),
  'instance-start.spared': sparedStart,
  'instance-start.unregister-silent': startWith(cut('register', 'drop_after'), cut('unregister', 'drop_before')),
  'instance-start.unregister-retried': startWith(refuse('state:running'), busy('unregister', 2)),
  'instance-start.stop-requested': async ({ harness, hold }) => {
    const id = await harness.create();
    const registering = hold('registerVmm', id);
    const started = harness.client.startInstance(id).catch(() => {});
    await registering.asActivity;
    await harness.client.stopInstance(id);
    registering.release();
    await started;
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.claim-as-activity': asActivity('instanceStart', 'claimStart', startWith()),
  'instance-start.begin-as-activity': asActivity('instanceStart', 'beginUnwind', startWith(refuse('state:running'))),
  'instance-start.finish-as-activity': asActivity('instanceStart', 'finishUnwind', startWith(refuse('state:running'))),
  'instance-start.task-lost': lost(comingStart()),
  'instance-start.unwound-task-lost': lost(comingStart(refuse('state:running'))),
  'instance-start.cancelled-while-completing': cancelledWhileCompleting(comingStart()),
  'instance-start.cancelled-while-unwound': cancelledWhileCompleting(comingStart(refuse('state:running'))),
  'instance-start.cancelled': async ({ harness, hold }) => {
    const id = await harness.create();
    const registering = hold('registerVmm', id);
    const started = harness.client.startInstance(id).catch(() => {});
    await registering.asActivity;
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).cancel();
    await started;
    return { workflowId: workflowIds.start(id) };
  },

  'instance-migrate.success': migrateWith(),
  'instance-migrate.refused': async ({ harness }) => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    const input = { instanceId: id, destinationSledId: here.id };
    return directly(harness, 'instanceMigrate', workflowIds.migrate(id), input);
  },
  'instance-migrate.already-migrating': async ({ harness }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    await harness.client.migrateInstance(id, there.id);
    const input = { instanceId: id, destinationSledId: there.id };
    const recorded = await directly(harness, 'instanceMigrate', workflowIds.migrate(id), input);
    await harness.stack.worker.setUpdates(true);
    return recorded;
  },
  'instance-migrate.awaits-update': awaitsUpdate,
  'instance-migrate.update-never-came': async ({ harness }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    there.agent.faults.plant({ migration: { side: 'target', point: 'middle' } });
    await harness.client.migrateInstance(id, there.id);
    await harness.shows(id, 'running');
    const { operationId } = await harness.client.migrateInstance(id, there.id, { waitSeconds: 0 });
    const handle = harness.temporal.workflow.getHandle(workflowIds.migrate(id), operationId ?? undefined);
    // It gives up while the updates are held.
    await handle.result().catch(() => {});
    return { workflowId: workflowIds.migrate(id) };
  },
  'instance-migrate.without-attributes': withoutAttributes(migrateWith()),
  'instance-migrate.register-refused': migrateWith(refuse('register')),
  'instance-migrate.register-silent': migrateWith(cut('register', 'drop_before')),
  'instance-migrate.unwound': migrateWith(refuse('state:migration_target')),
  'instance-migrate.target-gone': migrateWith(gone('state:migration_target')),
  'instance-migrate.target-retried': migrateWith(busy('state:migration_target', 2)),
  'instance-migrate.spared': sparedMigration,
  'instance-migrate.unregister-retried': migrateWith(refuse('state:migration_target'), busy('unregister', 2)),
  'instance-migrate.cancelled': (recorder) => cancelledMigration(recorder, 'registerVmm'),
  'instance-migrate.cancelled-too-late': (recorder) => cancelledMigration(recorder, 'migrateIn'),
  'instance-migrate.claim-as-activity': asActivity('instanceMigrate', 'claimMigration', migrateWith()),
  'instance-migrate.signal-as-activity': asActivity('instanceMigrate', 'signalUpdate', awaitsUpdate),
  'instance-migrate.register-retried': migrateWith(cut('register', 'drop_after', 1), busy('register', 1)),
  'instance-migrate.read-as-activity': asActivity('instanceMigrate', 'readMigrateInCommand', (recorder) =>
    cancelledMigration(recorder, 'registerVmm'),
  ),
  'instance-migrate.begin-as-activity': asActivity('instanceMigrate', 'beginUnwind', migrateWith(refuse('register'))),
  'instance-migrate.finish-as-activity': asActivity('instanceMigrate', 'finishUnwind', migrateWith(refuse('register'))),
  'instance-migrate.task-lost': lost(comingMigration()),
  'instance-migrate.unwound-task-lost': lost(comingMigration(refuse('state:migration_target'))),
  'instance-migrate.cancelled-while-completing': cancelledWhileCompleting(comingMigration()),

  'instance-update.moved': async ({ harness }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    // First all that the source says, then all that the destination does: each report that needs an update is a signal.
    there.agent.faults.holdReports(true);
    await harness.client.migrateInstance(id, there.id);
    await waitUntil(async () => (await harness.record(id)).active?.state === 'destroyed', 'it never left');
    there.agent.faults.holdReports(false);
    await untilSignals(harness, workflowIds.update(id), MOVED_SIGNALS);
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
    return { workflowId: workflowIds.update(id) };
  },
  'instance-update.unwound': plainly(comingUpdate),
  'instance-update.as-activity': asActivity('instanceUpdate', 'updateInstance', plainly(comingUpdate)),
  'instance-update.task-lost': lost(comingUpdate),
  'instance-update.cancelled-while-completing': cancelledWhileCompleting(comingUpdate),
  'instance-update.signalled-while-working': (recorder) => chain(recorder, 2),
  'instance-update.signalled-while-completing': signalledWhileCompleting,
  'instance-update.long-chain': (recorder) => chain(recorder, 12),
  'instance-update.continued-as-new': (recorder) => chain(recorder, 40),

  'instance-stop.success': plainly(comingStop),
  'instance-stop.task-lost': lost(comingStop),
  'instance-stop.cancelled-while-completing': cancelledWhileCompleting(comingStop),
  'instance-stop.retried': async ({ harness }) => {
    const id = await harness.running();
    plant(harness, busy('state:stopped', 2));
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    return { workflowId: workflowIds.stop(id) };
  },
  'instance-stop.nothing-left': async ({ harness }) => {
    const id = await harness.create();
    return directly(harness, 'instanceStop', workflowIds.stop(id), { instanceId: id });
  },

  'vmm-unregister.gone-already': async ({ harness }) => {
    const vmmId = '00000000-0000-4000-8000-000000000001';
    return directly(harness, 'vmmUnregister', workflowIds.unregister(vmmId), { vmmId });
  },
  'vmm-unregister.success': plainly(comingUnregister),
  'vmm-unregister.as-activity': asActivity('vmmUnregister', 'unregisterLeftover', plainly(comingUnregister)),
  'vmm-unregister.task-lost': lost(comingUnregister),
  'vmm-unregister.cancelled-while-completing': cancelledWhileCompleting(comingUnregister),
  'vmm-unwind.spared': sparedUnwind,
  'migration-watch.success': async ({ harness, hold }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    const look = hold('watchMigration', id);
    await harness.client.migrateInstance(id, there.id);
    await harness.rests(id);
    const { id: migrationId } = await harness.client.getMigration(id);
    look.release();
    return { workflowId: workflowIds.watchMigration(migrationId) };
  },
  'vmm-unwind.success': plainly(comingUnwind),
  'vmm-unwind.begin-as-activity': asActivity('vmmUnwind', 'beginUnwind', plainly(comingUnwind)),
  'vmm-unwind.unregister-as-activity': asActivity('vmmUnwind', 'unregisterVmm', plainly(comingUnwind)),
  'vmm-unwind.finish-as-activity': asActivity('vmmUnwind', 'finishUnwind', plainly(comingUnwind)),
  'vmm-unwind.carried-forward': carriedForward,
  'vmm-unwind.read-as-activity': asActivity('vmmUnwind', 'readMigrateInCommand', carriedForward),
  'vmm-unwind.migrate-in-as-activity': asActivity('vmmUnwind', 'migrateIn', carriedForward),
  'vmm-unwind.task-lost': lost(comingUnwind),
  'vmm-unwind.cancelled-while-completing': cancelledWhileCompleting(comingUnwind),

  'watcher.success': ({ harness }) => byHand(harness, 'watcher'),
  'updater-scan.success': ({ harness }) => byHand(harness, 'updater'),
  'reaper.success': ({ harness }) => byHand(harness, 'reaper'),
  'auto-restart.success': ({ harness }) => byHand(harness, 'auto-restart'),
  'fencing.success': ({ harness }) => byHand(harness, 'fencing'),

  'sled-drain.drained': async ({ harness }) => {
    const { here } = await harness.placed(await alone(harness));
    await harness.client.drainSled(here.id);
    return drainEnded(harness, here.id);
  },
  'sled-drain.incomplete': async ({ harness }) => {
    const { here } = await harness.placed(await alone(harness));
    plant(harness, refuse('register'));
    await harness.client.drainSled(here.id);
    return drainEnded(harness, here.id);
  },
  'sled-drain.stopped': async ({ harness, hold }) => {
    const id = await alone(harness);
    const { here } = await harness.placed(id);
    const registering = hold('registerVmm', id);
    await harness.client.drainSled(here.id);
    await registering.reached;
    await harness.client.stopDrain(here.id);
    const ended = await drainEnded(harness, here.id);
    registering.release();
    return ended;
  },

  // Last: it costs a sled.
  'instance-start.sled-expunged': async ({ harness }) => {
    const id = await harness.create();
    plant(harness, busy('state:running'));
    const started = harness.client.startInstance(id).catch(() => {});
    await untilDoing(harness, workflowIds.start(id), 'runVmm');
    const { active } = await harness.record(id);
    silence(harness.sled(active?.sledId));
    await harness.client.expungeSled(active?.sledId ?? '', { sled_powered_off: true });
    await started;
    return { workflowId: workflowIds.start(id) };
  },
};

/** Of what each side reports, that which finds an update needed, but for the first, which begins the workflow. */
const MOVED_SIGNALS = 5;

/** Waits until a workflow that nobody works on has been begun and signalled so often in all. */
async function untilSignals(harness: Harness, workflowId: string, signals: number): Promise<void> {
  let received = 0;
  await waitUntil(
    async () => {
      const { events } = await harness.temporal.workflow.getHandle(workflowId).fetchHistory();
      const isSignal = (event: NonNullable<typeof events>[number] | undefined) =>
        event?.workflowExecutionSignaledEventAttributes != null;
      // One that was begun by a signal was not begun beside it.
      received = (events ?? []).filter(isSignal).length + (isSignal(events?.[1]) ? 0 : 1);
      return received >= signals;
    },
    '',
    30_000,
    50,
  ).catch(() => {
    throw new Error(`${workflowId} was signalled ${received} times, not ${signals}`);
  });
}

/** Fails a migration at its source; returns its target VMM. */
async function migrationFailedBy(harness: Harness, id: string, there: StackSled): Promise<{ target: string }> {
  const { here } = await harness.placed(id);
  here.agent.faults.plant({ migration: { side: 'source', point: 'middle' } });
  const { operationId } = await harness.client.migrateInstance(id, there.id);
  const result = await harness.temporal.workflow.getHandle(workflowIds.migrate(id), operationId ?? undefined).result();
  return { target: (result as { vmmId: string }).vmmId };
}

async function byHand(harness: Harness, name: ReconcilerName): ReturnType<Recording> {
  await harness.client.runReconciler(name);
  return { workflowId: workflowIds.reconcileOnce(harness.installation, name) };
}

/** A running instance, and no other. */
async function alone(harness: Harness): Promise<string> {
  const others: string[] = [];
  for await (const { id, run_state } of harness.client.listInstances())
    if (!['stopped', 'failed'].includes(run_state)) others.push(id);
  await Promise.all(others.map((id) => harness.client.stopInstance(id)));
  for (const id of others) await harness.shows(id, 'stopped');
  return harness.running();
}

async function drainEnded(harness: Harness, sledId: string): ReturnType<Recording> {
  await harness.client.waitForDrain(sledId);
  await harness.client.setSledPolicy(sledId, 'provisionable');
  return { workflowId: workflowIds.drain(sledId) };
}

/** Cancels a migration at a step: before the point of no return it is undone, past it the step is carried through. */
async function cancelledMigration(
  { harness, hold }: Recorder,
  step: 'registerVmm' | 'migrateIn',
): ReturnType<Recording> {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  const workflowId = workflowIds.migrate(id);
  const held = hold(step, id);
  const migrated = harness.client.migrateInstance(id, there.id).catch(() => {});
  await held.asActivity;
  await harness.temporal.workflow.getHandle(workflowId).cancel();
  await untilDecided(harness, workflowId);
  if (step === 'migrateIn') held.release();
  await migrated;
  return { workflowId };
}
