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
  setHandler,
  sleep,
  workflowInfo,
} from '@temporalio/workflow';
import type { DrainActivities } from '../activities/drain.ts';
import { type DrainEntry, type DrainProgress, drainDetails } from '../model/drain.ts';
import type { DrainTry, SledDrainInput } from '../model/workflow-inputs.ts';
import { workflowIds } from '../model/workflow-names.ts';
import { tellDetails } from './details.ts';
import type { instanceMigrate } from './instance-migrate.ts';

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
  const maxRounds = input.maxRounds ?? DEFAULT_MAX_ROUNDS;
  const instancesPerRun = input.instancesPerRun ?? DEFAULT_INSTANCES_PER_RUN;
  let moved = input.carried?.moved ?? 0;
  let ended = input.carried?.ended ?? 0;
  const tries = new Map<string, DrainTry>(Object.entries(input.carried?.tries ?? {}));
  const moving = new Map<string, DrainEntry>();
  const waiting = new Map<string, DrainEntry>();
  let here = new Set<string>();
  let sledName = input.sledName ?? sledId;
  let state: DrainProgress['state'] = 'running';
  let stopReason: string | null = null;
  let handled = 0;

  const progress = (): DrainProgress => ({
    sledId,
    sledName,
    state,
    total: moved + ended + here.size,
    moved,
    ended,
    moving: [...moving.values()],
    waiting: [...waiting.values()],
    couldNotMove: [...tries]
      .filter(([instanceId, { rounds }]) => rounds >= maxRounds && here.has(instanceId))
      .map(([instanceId, { name, reason }]) => ({ instanceId, name, detail: reason })),
    parallel,
    stopReason,
  });
  setHandler(drainProgress, progress);
  setHandler(stopDrain, () => {
    stopReason ??= 'by an operator';
  });
  const tell = () => tellDetails(drainDetails(progress()));

  // Once: an operator may put the sled back into service meanwhile, which ends the drain.
  if (input.carried === undefined) await beginDrain({ sledId });
  for (;;) {
    const work = await readDrainWork({ sledId });
    sledName = work.sled.name;
    if (work.sled.policy !== 'no_provision') stopReason ??= `the sled is ${work.sled.policy} now`;
    here = new Set(work.instances.map(({ instanceId }) => instanceId));
    // What had failed here and has left in another way counts with the rest.
    for (const [instanceId, { name }] of [...tries]) {
      if (!here.has(instanceId) && stopReason === null) await settle({ instanceId, name });
    }
    const open = work.instances.filter(({ instanceId }) => (tries.get(instanceId)?.rounds ?? 0) < maxRounds);
    tell();
    if (stopReason !== null || open.length === 0) break;

    const again = Math.min(...open.map(({ instanceId }) => tries.get(instanceId)?.rounds ?? 0));
    if (again > 0) {
      await condition(() => stopReason !== null, again * (input.roundPauseMs ?? DEFAULT_ROUND_PAUSE_MS));
      if (stopReason !== null) break;
    }
    const queue = [...open];
    const runEnds = () => workflowInfo().continueAsNewSuggested || handled >= instancesPerRun;
    const mover = async () => {
      for (let next = queue.shift(); next !== undefined && stopReason === null && !runEnds(); next = queue.shift()) {
        await moveAway(next);
        handled += 1;
        tell();
      }
    };
    const all = Promise.all(Array.from({ length: parallel }, mover));
    await Promise.race([all, condition(() => stopReason !== null)]);
    if (runEnds() && stopReason === null) {
      // What is still under way goes on by itself, and is found where it then is.
      await Promise.race([all, sleep(HAND_OVER_MS)]);
      if (stopReason === null) {
        await continueAsNew<typeof sledDrain>({
          ...input,
          carried: { moved, ended, tries: Object.fromEntries(tries) },
        });
      }
    }
  }
  state = stopReason !== null ? 'stopped' : here.size === 0 ? 'drained' : 'incomplete';
  tell();
  return progress();

  /** Moves one instance away, or finds out why it can't be. */
  async function moveAway({ instanceId, name }: { instanceId: string; name: string }): Promise<void> {
    const limitMs = input.waitLimitMs ?? DEFAULT_WAIT_LIMIT_MS;
    const lookMs = Math.min(LOOK_MS, limitMs);
    let destination: { id: string; name: string } | null = null;
    for (let waitedMs = 0; ; ) {
      const avoidSledIds = tries.get(instanceId)?.avoidSledIds ?? [];
      const plan = await planMove({ instanceId, sledId, avoidSledIds, waitMs: lookMs });
      switch (plan.do) {
        case 'left':
          return leave(instanceId, plan.how);
        case 'wait':
          waitedMs += lookMs;
          if (waitedMs > limitMs)
            return failed(instanceId, name, `it was waited for in vain: ${plan.until}`, null, maxRounds);
          (destination === null ? waiting : moving).set(instanceId, {
            instanceId,
            name,
            detail: destination?.name ?? plan.until,
          });
          tell();
          break;
        case 'no-place':
          return failed(instanceId, name, plan.reason, null);
        case 'move': {
          if (destination !== null)
            return failed(instanceId, name, `its migration to ${destination.name} failed on the way`, destination.id);
          destination = plan.to;
          waiting.delete(instanceId);
          moving.set(instanceId, { instanceId, name, detail: destination.name });
          tell();
          const refused = await migrate(instanceId, name, destination);
          if (refused === 'busy') destination = null;
          else if (refused !== null) return failed(instanceId, name, refused.reason, destination.id);
        }
      }
    }
  }

  /** Runs the migration as the user's own would run; `busy` when one is on its way already. */
  async function migrate(
    instanceId: string,
    name: string,
    to: { id: string; name: string },
  ): Promise<null | 'busy' | { reason: string }> {
    try {
      await executeChild<typeof instanceMigrate>('instanceMigrate', {
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

  async function settle({ instanceId, name }: { instanceId: string; name: string }): Promise<void> {
    const plan = await planMove({ instanceId, sledId, avoidSledIds: [], waitMs: 0 });
    if (plan.do === 'left') leave(instanceId, plan.how);
    else tries.set(instanceId, { name, rounds: 0, reason: '', avoidSledIds: [] });
  }

  function leave(instanceId: string, how: 'moved' | 'ended'): void {
    if (how === 'moved') moved += 1;
    else ended += 1;
    forget(instanceId);
    here.delete(instanceId);
    tries.delete(instanceId);
  }

  function failed(instanceId: string, name: string, reason: string, sledIdToAvoid: string | null, rounds = 1): void {
    const before = tries.get(instanceId);
    tries.set(instanceId, {
      name,
      reason,
      rounds: (before?.rounds ?? 0) + rounds,
      avoidSledIds: [...new Set([...(before?.avoidSledIds ?? []), ...(sledIdToAvoid === null ? [] : [sledIdToAvoid])])],
    });
    forget(instanceId);
  }

  function forget(instanceId: string): void {
    moving.delete(instanceId);
    waiting.delete(instanceId);
  }
}
