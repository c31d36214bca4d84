/**
 * Drains a sled: takes it out of service for new VMMs and live-migrates everything away, a bounded number at a time.
 *
 * It guarantees: it ends. Each instance gets a bounded number of rounds and a bounded wait; what could not move is
 * reported with the reason, and stays where it is. It holds nothing: what it does is read anew from the database each
 * time, so a user's own stop, migration or delete meanwhile is only another way to leave. Stopping it, or its death, ends
 * no migration: each is a saga of its own (`instance-migrate/<instance id>`), which goes on.
 *
 * Who else touches these rows: everyone; this saga writes nothing but the sled's policy.
 */
import { WorkflowExecutionAlreadyStartedError } from '@temporalio/common';
import {
  ChildWorkflowFailure,
  condition,
  continueAsNew,
  defineQuery,
  defineSignal,
  executeChild,
  ParentClosePolicy,
  proxyActivities,
  setCurrentDetails,
  setHandler,
  sleep,
  workflowInfo,
} from '@temporalio/workflow';
import type { DrainActivities } from '../activities/drain.ts';
import { type DrainedInstance, DrainLedger, type DrainProgress, drainDetails } from '../model/drain.ts';
import type { SledDrainInput, WorkflowTypes } from '../model/workflow-inputs.ts';
import { workflowIds } from '../model/workflow-names.ts';

/** The drain is to stop: nothing more is begun. */
export const stopDrain = defineSignal('stopDrain');
export const drainProgress = defineQuery<DrainProgress>('drainProgress');

const DEFAULT_MAX_ROUNDS = 3;
const DEFAULT_ROUND_PAUSE_MS = 5_000;
const DEFAULT_WAIT_LIMIT_MS = 10 * 60_000;
const DEFAULT_INSTANCES_PER_RUN = 500;
/** How long one look waits for an instance, and how long a stop by continue-as-new waits for what is under way, in milliseconds. */
const LOOK_MS = 20_000;
const HAND_OVER_MS = 60_000;
/** How long to wait before an instance with a migration of its own is looked at again, in milliseconds. */
const LOOK_AGAIN_MS = 500;

const { beginDrain, readDrainWork } = proxyActivities<DrainActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});
/** It waits within itself, so that an instance that is slow costs no history. */
const { planMove } = proxyActivities<DrainActivities>({
  startToCloseTimeout: '40s',
  heartbeatTimeout: '15s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});

export async function sledDrain(input: SledDrainInput): Promise<DrainProgress> {
  const { sledId, parallel } = input;
  const ledger = new DrainLedger(input.maxRounds ?? DEFAULT_MAX_ROUNDS, input.carried);
  const instancesPerRun = input.instancesPerRun ?? DEFAULT_INSTANCES_PER_RUN;
  let sledName = input.sledName ?? sledId;
  let state: DrainProgress['state'] = 'running';
  let stopReason: string | null = null;
  let handled = 0;

  const progress = () => ledger.progress({ sledId, sledName, state, parallel, stopReason });
  const showProgress = () => setCurrentDetails(drainDetails(progress()));
  setHandler(drainProgress, progress);
  setHandler(stopDrain, () => {
    stopReason ??= 'by an operator';
  });

  // Once: an operator may put the sled back into service meanwhile, which ends the drain.
  if (input.carried === undefined) await beginDrain({ sledId });
  for (;;) {
    const work = await readDrainWork({ sledId });
    sledName = work.sled.name;
    if (work.sled.policy !== 'no_provision') stopReason ??= `the sled is ${work.sled.policy} now`;
    // What had failed here and has left in another way counts with the rest.
    for (const instance of ledger.observe(work.instances)) if (stopReason === null) await countDeparture(instance);
    const open = ledger.open(work.instances);
    showProgress();
    if (stopReason !== null || open.length === 0) break;

    const rounds = ledger.leastRounds(open);
    if (rounds > 0) {
      await condition(() => stopReason !== null, rounds * (input.roundPauseMs ?? DEFAULT_ROUND_PAUSE_MS));
      if (stopReason !== null) break;
    }
    await moveAll(open);
  }
  state = stopReason !== null ? 'stopped' : ledger.empty ? 'drained' : 'incomplete';
  showProgress();
  return progress();

  /** One round over these instances; continued as new, with what the ledger holds, when the run has become long. */
  async function moveAll(instances: readonly DrainedInstance[]): Promise<void> {
    const queue = [...instances];
    const runEnds = () => workflowInfo().continueAsNewSuggested || handled >= instancesPerRun;
    const mover = async () => {
      for (let next = queue.shift(); next !== undefined && stopReason === null && !runEnds(); next = queue.shift()) {
        await moveAway(next);
        handled += 1;
        showProgress();
      }
    };
    const all = Promise.all(Array.from({ length: parallel }, mover));
    await Promise.race([all, condition(() => stopReason !== null)]);
    if (!runEnds() || stopReason !== null) return;
    // What is still under way goes on by itself, and is found where it then is.
    await Promise.race([all, sleep(HAND_OVER_MS)]);
    if (stopReason === null) await continueAsNew<typeof sledDrain>({ ...input, carried: ledger.carried() });
  }

  /** Moves one instance away, or finds out why it can't be. */
  async function moveAway(instance: DrainedInstance): Promise<void> {
    const { instanceId } = instance;
    const limitMs = input.waitLimitMs ?? DEFAULT_WAIT_LIMIT_MS;
    const lookMs = Math.min(LOOK_MS, limitMs);
    let destination: { id: string; name: string } | null = null;
    for (let waitedMs = 0; ; ) {
      const avoidSledIds = ledger.sledIdsToAvoid(instanceId);
      const plan = await planMove({ instanceId, sledId, avoidSledIds, waitMs: lookMs });
      switch (plan.do) {
        case 'left':
          return ledger.left(instanceId, plan.how);
        case 'wait':
          waitedMs += lookMs;
          if (waitedMs > limitMs) return ledger.givenUp(instance, `it was waited for in vain: ${plan.until}`);
          if (destination === null) ledger.waitsFor(instance, plan.until);
          else ledger.movesTo(instance, destination.name);
          showProgress();
          break;
        case 'no-place':
          return ledger.failed(instance, plan.reason);
        case 'move': {
          if (destination !== null)
            return ledger.failed(instance, `its migration to ${destination.name} failed on the way`, destination.id);
          destination = plan.to;
          ledger.movesTo(instance, destination.name);
          showProgress();
          const refused = await migrate(instance, destination);
          if (refused === 'busy') destination = null;
          else if (refused !== null) return ledger.failed(instance, refused.reason, destination.id);
        }
      }
    }
  }

  /** Runs the migration as the user's own would run; `busy` when one is on its way already. */
  async function migrate(
    { instanceId, name }: DrainedInstance,
    to: { id: string; name: string },
  ): Promise<null | 'busy' | { reason: string }> {
    try {
      await executeChild<WorkflowTypes['instanceMigrate']>('instanceMigrate', {
        workflowId: workflowIds.migrate(instanceId),
        args: [{ instanceId, destinationSledId: to.id, drainedSledId: sledId }],
        parentClosePolicy: ParentClosePolicy.ABANDON,
        staticSummary: `migrate instance "${name}" to sled "${to.name}", to drain "${sledName}"`,
      });
      return null;
    } catch (error) {
      if (error instanceof WorkflowExecutionAlreadyStartedError) {
        // Its saga may be over in a moment although the instance shows Running again.
        await sleep(LOOK_AGAIN_MS);
        return 'busy';
      }
      if (!(error instanceof ChildWorkflowFailure)) throw error;
      return { reason: error.cause?.message ?? error.message };
    }
  }

  async function countDeparture(instance: DrainedInstance): Promise<void> {
    const plan = await planMove({ instanceId: instance.instanceId, sledId, avoidSledIds: [], waitMs: 0 });
    if (plan.do === 'left') ledger.left(instance.instanceId, plan.how);
    else ledger.returned(instance);
  }
}
