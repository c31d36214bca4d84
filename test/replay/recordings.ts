/** What is recorded: each saga's success, each step that fails, each stage of an unwind, the races, by the name of its file. */
import type { ReconcilerName } from '../../model/reconcilers.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { CallFault, Fault, FaultCall } from '../../sled-agent/faults.ts';
import type { StackSled } from '../../stack/stack-sleds.ts';
import { type Harness, refused } from '../support/harness.ts';
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
function startWith(...faults: Fault[]): Recording {
  return async ({ harness }) => {
    const id = await harness.create();
    plant(harness, ...faults);
    await harness.client.startInstance(id).catch(() => {});
    return { workflowId: workflowIds.start(id) };
  };
}

/** A migration with these faults on its destination. */
function migrateWith(...faults: Fault[]): Recording {
  return async ({ harness }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    for (const fault of faults) there.agent.faults.plant(fault);
    await harness.client.migrateInstance(id, there.id).catch(() => {});
    return { workflowId: workflowIds.migrate(id) };
  };
}

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
  const { events } = await handle.fetchHistory();
  // WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
  if (!(events ?? []).some((event) => event.workflowTaskFailedEventAttributes?.cause === 1))
    throw new Error('the signal did not meet the completion');
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
  'instance-start.register-retried': startWith(cut('register', 'drop_after', 1), busy('register', 1)),
  'instance-start.unwound': startWith(refuse('state:running')),
  'instance-start.running-gone': startWith(gone('state:running')),
  'instance-start.running-retried': startWith(busy('state:running', 2)),
  'instance-start.spared': startWith(cut('state:running', 'drop_after', 1), refuse('state:running')),
  'instance-start.unregister-silent': startWith(cut('register', 'drop_after'), cut('unregister', 'drop_before')),
  'instance-start.unregister-retried': startWith(refuse('state:running'), busy('unregister', 2)),
  'instance-start.stop-requested': async ({ harness, hold }) => {
    const id = await harness.create();
    const registering = hold('registerVmm', id);
    const started = harness.client.startInstance(id).catch(() => {});
    await registering.reached;
    await harness.client.stopInstance(id);
    registering.release();
    await started;
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.cancelled': async ({ harness, hold }) => {
    const id = await harness.create();
    const registering = hold('registerVmm', id);
    const started = harness.client.startInstance(id).catch(() => {});
    await registering.reached;
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
  'instance-migrate.awaits-update': async ({ harness, hold }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    there.agent.faults.plant({ migration: { side: 'target', point: 'middle' } });
    await harness.client.migrateInstance(id, there.id);
    await harness.shows(id, 'running');
    const second = hold('claimMigration', id, 1);
    const again = harness.client.migrateInstance(id, there.id);
    await second.reached;
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).instance.migrationId === null, 'it was never cleared');
    second.release();
    await again;
    return { workflowId: workflowIds.migrate(id) };
  },
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
  'instance-migrate.register-refused': migrateWith(refuse('register')),
  'instance-migrate.register-silent': migrateWith(cut('register', 'drop_before')),
  'instance-migrate.unwound': migrateWith(refuse('state:migration_target')),
  'instance-migrate.target-gone': migrateWith(gone('state:migration_target')),
  'instance-migrate.target-retried': migrateWith(busy('state:migration_target', 2)),
  'instance-migrate.spared': migrateWith(
    cut('state:migration_target', 'drop_after', 1),
    refuse('state:migration_target'),
  ),
  'instance-migrate.unregister-retried': migrateWith(refuse('state:migration_target'), busy('unregister', 2)),
  'instance-migrate.cancelled': (recorder) => cancelledMigration(recorder, 'registerVmm'),
  'instance-migrate.cancelled-too-late': (recorder) => cancelledMigration(recorder, 'migrateIn'),

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
  'instance-update.unwound': async ({ harness }) => {
    const id = await harness.create();
    plant(harness, refuse('state:running'));
    await harness.stack.worker.setUpdates(false);
    await refused(harness.client.startInstance(id));
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).instance.activeVmmId === null, 'it was never cleared');
    return { workflowId: workflowIds.update(id) };
  },
  'instance-update.signalled-while-working': (recorder) => chain(recorder, 2),
  'instance-update.signalled-while-completing': signalledWhileCompleting,
  'instance-update.long-chain': (recorder) => chain(recorder, 12),
  'instance-update.continued-as-new': (recorder) => chain(recorder, 40),

  'instance-stop.success': async ({ harness }) => {
    const id = await harness.running();
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    return { workflowId: workflowIds.stop(id) };
  },
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
  'vmm-unregister.success': async ({ harness }) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    // The source reports that it kept the guest; the destination has not reported.
    there.agent.faults.holdReports(true);
    const { target } = await migrationFailedBy(harness, id, there);
    await waitUntil(async () => (await harness.record(id)).instance.targetVmmId === null, 'it was never cleared');
    const workflowId = workflowIds.unregister(target);
    await waitUntil(
      () =>
        harness.temporal.workflow
          .getHandle(workflowId)
          .describe()
          .then(
            () => true,
            () => false,
          ),
      'nobody unregistered the leftover',
    );
    return { workflowId };
  },
  'vmm-unwind.spared': async ({ harness, hold }) => {
    const id = await harness.create();
    plant(harness, cut('state:running', 'drop_after', 1));
    const second = hold('runVmm', id, 1);
    harness.client.startInstance(id).catch(() => {});
    await harness.shows(id, 'running');
    return unwoundAfter(harness, workflowIds.start(id), id, second);
  },
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
  'vmm-unwind.success': async ({ harness, hold }) => {
    const id = await harness.create();
    const step = hold('runVmm', id);
    harness.client.startInstance(id).catch(() => {});
    return unwoundAfter(harness, workflowIds.start(id), id, step);
  },
  'vmm-unwind.carried-forward': async ({ harness, hold }) => {
    const id = await harness.running();
    // The step of the migration, not the one of what carries it forward.
    const step = hold('migrateIn', workflowIds.migrate(id));
    const { there } = await harness.placed(id);
    harness.client.migrateInstance(id, there.id).catch(() => {});
    return unwoundAfter(harness, workflowIds.migrate(id), id, step);
  },

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
    await harness.client.expungeSled(active?.sledId ?? '');
    await started;
    return { workflowId: workflowIds.start(id) };
  },
};

/** Of what each side reports, that which finds an update needed, but for the first, which begins the workflow. */
const MOVED_SIGNALS = 5;

/** Waits until a workflow that nobody works on has been signalled so often. */
async function untilSignals(harness: Harness, workflowId: string, signals: number): Promise<void> {
  let received = 0;
  await waitUntil(
    async () => {
      const { events } = await harness.temporal.workflow.getHandle(workflowId).fetchHistory();
      received = (events ?? []).filter((event) => event.workflowExecutionSignaledEventAttributes).length;
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
  return { workflowId: workflowIds.reconcileOnce(name) };
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
  await held.reached;
  await harness.temporal.workflow.getHandle(workflowId).cancel();
  await untilDecided(harness, workflowId);
  if (step === 'migrateIn') held.release();
  await migrated;
  return { workflowId };
}
