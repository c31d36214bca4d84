/** What is recorded: each saga's success, each step that fails, each stage of an unwind, the races, by the name of its file. */
import { spawnSync } from 'node:child_process';
import { sql } from 'drizzle-orm';
import type { ReconcilerName } from '../../model/reconcilers.ts';
import { TASK_QUEUE, workflowIds } from '../../model/workflow-names.ts';
import type { CallFault, Fault, FaultCall } from '../../sled-agent/faults.ts';
import { waitUntil } from '../../worker/child-process.ts';
import { findTemporalBinary } from '../../worker/temporal-server.ts';
import { type Harness, refused } from '../support/harness.ts';

/** Brings about what is to be recorded; returns the workflow, and its run where the id has several. */
type Recording = (harness: Harness) => Promise<{ readonly workflowId: string; readonly runId?: string }>;

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
  return async (harness) => {
    const id = await harness.create();
    plant(harness, ...faults);
    await harness.client.startInstance(id).catch(() => {});
    return { workflowId: workflowIds.start(id) };
  };
}

/** A migration with these faults on its destination. */
function migrateWith(...faults: Fault[]): Recording {
  return async (harness) => {
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

/** Starts a workflow past the API, which would not have begun it. */
async function directly(harness: Harness, type: string, workflowId: string, input: unknown) {
  const handle = await harness.temporal.workflow.start(type, { workflowId, taskQueue: TASK_QUEUE, args: [input] });
  await handle.result().catch(() => {});
  return { workflowId, runId: handle.firstExecutionRunId };
}

/** Holds the lock on an instance's row, or queues for it, until it is released. */
function lockInstance(harness: Harness, id: string) {
  let release = () => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  let got = () => {};
  const held = new Promise<void>((resolve) => {
    got = resolve;
  });
  const ended = harness.database.db.transaction(async (transaction) => {
    await transaction.execute(sql`SELECT 1 FROM instance WHERE id = ${id} FOR UPDATE`);
    got();
    await released;
  });
  return { held, release, ended };
}

/** Waits until somebody queues for a lock. */
async function untilQueued(harness: Harness, waiting: number): Promise<void> {
  await waitUntil(
    async () => {
      const result = await harness.database.db.execute(
        sql`SELECT count(DISTINCT pid)::int AS count FROM pg_locks WHERE NOT granted`,
      );
      return Number(result.rows[0]?.count) >= waiting;
    },
    'nobody queued for the lock',
    60_000,
    10,
  );
}

/** Runs an update in `rounds` rounds: a signal comes while each one but the last is held by a lock on the instance. */
async function chain(harness: Harness, rounds: number): ReturnType<Recording> {
  const id = await harness.running();
  await harness.rests(id);
  const workflowId = workflowIds.update(id);
  await harness.temporal.workflow
    .getHandle(workflowId)
    .result()
    .catch(() => {});
  const signal = () => harness.signalUpdate(id).then(() => harness.temporal.workflow.getHandle(workflowId).describe());
  let lock = lockInstance(harness, id);
  await lock.held;
  const { runId } = await signal();
  for (let round = 1; round < rounds; round++) {
    await untilQueued(harness, 1);
    // Continued as new: the rest belongs to the next run.
    if ((await signal()).runId !== runId) break;
    const next = lockInstance(harness, id);
    await untilQueued(harness, 2);
    lock.release();
    await next.held;
    lock = next;
  }
  lock.release();
  await lock.ended;
  return { workflowId, runId };
}

/**
 * Signals an update as it completes, until the server has refused the completion and handed the signal over. Each signal
 * is sent by a process for which this one, worker and all, stands still: a completion that it meets is on its way.
 */
const signalledWhileCompleting: Recording = async (harness) => {
  const id = await harness.running();
  await harness.rests(id);
  const workflowId = workflowIds.update(id);
  const { path: binary } = await findTemporalBinary();
  const { temporalAddress } = harness.stack;
  const signal = [
    'workflow',
    'signal',
    '--workflow-id',
    workflowId,
    '--name',
    'updateNeeded',
    '--address',
    temporalAddress,
  ];
  for (let run = 0; run < 50; run++) {
    await harness.signalUpdate(id);
    const { runId } = await harness.temporal.workflow.getHandle(workflowId).describe();
    const handle = harness.temporal.workflow.getHandle(workflowId, runId);
    for (let sent = 0; sent < 30; sent++) {
      // It fails when the run is over.
      if (spawnSync(binary, signal, { stdio: 'ignore' }).status !== 0) break;
      await new Promise((resolve) => setTimeout(resolve, sent % 10));
      const { events } = await handle.fetchHistory();
      // WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
      if ((events ?? []).some((event) => event.workflowTaskFailedEventAttributes?.cause === 1))
        return { workflowId, runId };
    }
  }
  throw new Error('no signal ever met a completion');
};

/** A workflow of a type that the stack began by itself. */
async function untilBegun(harness: Harness, query: string): Promise<{ workflowId: string; runId: string }> {
  let found: { workflowId: string; runId: string } | null = null;
  await waitUntil(
    async () => {
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

/** Terminates a workflow at a step; the scan then has its VMM unwound by a workflow of its own. */
async function unwoundAfter(harness: Harness, workflowId: string, instanceId: string, step: string) {
  await untilDoing(harness, workflowId, step);
  await harness.temporal.workflow.getHandle(workflowId).terminate('for a recording');
  harness.everywhere(({ agent }) => agent.faults.clear());
  return untilBegun(harness, `WorkflowType = "vmmUnwind" AND MooringInstanceId = "${instanceId}"`);
}

export const RECORDINGS: Readonly<Record<string, Recording>> = {
  'instance-start.success': startWith(),
  'instance-start.joined': async (harness) => {
    const id = await harness.create();
    plant(harness, delay('register', 300));
    await Promise.all([harness.client.startInstance(id), harness.client.startInstance(id)]);
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.already-started': async (harness) => {
    const id = await harness.running();
    return directly(harness, 'instanceStart', workflowIds.start(id), { instanceId: id, reason: 'user' });
  },
  'instance-start.refused': async (harness) => {
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
  'instance-start.stop-requested': async (harness) => {
    const id = await harness.create();
    plant(harness, delay('register', 1_500));
    const started = harness.client.startInstance(id).catch(() => {});
    await untilDoing(harness, workflowIds.start(id), 'registerVmm');
    await harness.client.stopInstance(id);
    await started;
    return { workflowId: workflowIds.start(id) };
  },
  'instance-start.cancelled': async (harness) => {
    const id = await harness.create();
    plant(harness, delay('register', 1_500));
    const started = harness.client.startInstance(id).catch(() => {});
    await untilDoing(harness, workflowIds.start(id), 'registerVmm');
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).cancel();
    await started;
    return { workflowId: workflowIds.start(id) };
  },

  'instance-migrate.success': migrateWith(),
  'instance-migrate.refused': async (harness) => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    const input = { instanceId: id, destinationSledId: here.id };
    return directly(harness, 'instanceMigrate', workflowIds.migrate(id), input);
  },
  'instance-migrate.already-migrating': async (harness) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    await harness.client.migrateInstance(id, there.id);
    const input = { instanceId: id, destinationSledId: there.id };
    const recorded = await directly(harness, 'instanceMigrate', workflowIds.migrate(id), input);
    await harness.stack.worker.setUpdates(true);
    return recorded;
  },
  'instance-migrate.awaits-update': async (harness) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    there.agent.faults.plant({ migration: { side: 'target', point: 'middle' } });
    await harness.client.migrateInstance(id, there.id);
    await harness.shows(id, 'running');
    const again = harness.client.migrateInstance(id, there.id);
    await untilTimer(harness, workflowIds.migrate(id));
    await harness.stack.worker.setUpdates(true);
    await again;
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
  'instance-migrate.cancelled': async (harness) => cancelledMigration(harness, 'register', 'registerVmm'),
  'instance-migrate.cancelled-too-late': async (harness) =>
    cancelledMigration(harness, 'state:migration_target', 'migrateIn'),

  'instance-update.moved': async (harness) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.stack.worker.setUpdates(false);
    await harness.client.migrateInstance(id, there.id);
    await waitUntil(async () => (await harness.record(id)).active?.state === 'destroyed', 'it never left');
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
    return { workflowId: workflowIds.update(id) };
  },
  'instance-update.unwound': async (harness) => {
    const id = await harness.create();
    plant(harness, refuse('state:running'));
    await harness.stack.worker.setUpdates(false);
    await refused(harness.client.startInstance(id));
    await harness.stack.worker.setUpdates(true);
    await waitUntil(async () => (await harness.record(id)).instance.activeVmmId === null, 'it was never cleared');
    return { workflowId: workflowIds.update(id) };
  },
  'instance-update.signalled-while-working': (harness) => chain(harness, 2),
  'instance-update.signalled-while-completing': signalledWhileCompleting,
  'instance-update.long-chain': (harness) => chain(harness, 12),
  'instance-update.continued-as-new': (harness) => chain(harness, 40),

  'instance-stop.success': async (harness) => {
    const id = await harness.running();
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    return { workflowId: workflowIds.stop(id) };
  },
  'instance-stop.retried': async (harness) => {
    const id = await harness.running();
    plant(harness, busy('state:stopped', 2));
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    return { workflowId: workflowIds.stop(id) };
  },
  'instance-stop.nothing-left': async (harness) => {
    const id = await harness.create();
    return directly(harness, 'instanceStop', workflowIds.stop(id), { instanceId: id });
  },

  'vmm-unregister.gone-already': async (harness) => {
    const vmmId = '00000000-0000-4000-8000-000000000001';
    return directly(harness, 'vmmUnregister', workflowIds.unregister(vmmId), { vmmId });
  },
  'vmm-unwind.success': async (harness) => {
    const id = await harness.create();
    plant(harness, busy('state:running'));
    harness.client.startInstance(id).catch(() => {});
    return unwoundAfter(harness, workflowIds.start(id), id, 'runVmm');
  },
  'vmm-unwind.carried-forward': async (harness) => {
    const id = await harness.running();
    plant(harness, busy('state:migration_target'));
    const { there } = await harness.placed(id);
    harness.client.migrateInstance(id, there.id).catch(() => {});
    return unwoundAfter(harness, workflowIds.migrate(id), id, 'migrateIn');
  },

  'watcher.success': (harness) => byHand(harness, 'watcher'),
  'updater-scan.success': (harness) => byHand(harness, 'updater'),
  'reaper.success': (harness) => byHand(harness, 'reaper'),
  'auto-restart.success': (harness) => byHand(harness, 'auto-restart'),

  'sled-drain.drained': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    await harness.client.drainSled(here.id);
    return drainEnded(harness, here.id);
  },
  'sled-drain.incomplete': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    plant(harness, refuse('register'));
    await harness.client.drainSled(here.id);
    return drainEnded(harness, here.id);
  },
  'sled-drain.stopped': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    plant(harness, delay('register', 1_000));
    await harness.client.drainSled(here.id);
    await waitUntil(async () => (await harness.client.getDrain(here.id)).moving.length > 0, 'it never began');
    await harness.client.stopDrain(here.id);
    return drainEnded(harness, here.id);
  },

  // Last: it costs a sled.
  'instance-start.sled-expunged': async (harness) => {
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

async function byHand(harness: Harness, name: ReconcilerName): ReturnType<Recording> {
  await harness.client.runReconciler(name);
  return { workflowId: workflowIds.reconcileOnce(name) };
}

async function drainEnded(harness: Harness, sledId: string): ReturnType<Recording> {
  await harness.client.waitForDrain(sledId);
  await harness.client.setSledPolicy(sledId, 'provisionable');
  return { workflowId: workflowIds.drain(sledId) };
}

async function cancelledMigration(harness: Harness, call: FaultCall, step: string): ReturnType<Recording> {
  const id = await harness.running();
  const { there } = await harness.placed(id);
  there.agent.faults.plant(delay(call, 1_500));
  const workflowId = workflowIds.migrate(id);
  const migrated = harness.client.migrateInstance(id, there.id).catch(() => {});
  await untilDoing(harness, workflowId, step);
  await harness.temporal.workflow.getHandle(workflowId).cancel();
  await migrated;
  return { workflowId };
}

async function untilTimer(harness: Harness, workflowId: string): Promise<void> {
  await waitUntil(
    async () => {
      const { events } = await harness.temporal.workflow.getHandle(workflowId).fetchHistory();
      return (events ?? []).some((event) => event.timerStartedEventAttributes);
    },
    'it never waited for the update',
    60_000,
    50,
  );
}
