/** The steps of a drain: what is on the sled, and what is to be done about one instance there. */
import { setTimeout as pause } from 'node:timers/promises';
import { cancellationSignal } from '@temporalio/activity';
import { explainNoSled, type PlacementRequest, pickSled } from '../db/queries/pick-sled.ts';
import { type DrainWork, readDrainWork } from '../db/queries/read-drain-work.ts';
import { readInstance } from '../db/queries/read-instance.ts';
import { setSledPolicy } from '../db/transactions/set-sled-policy.ts';
import { type DrainPlace, drainStep } from '../model/drain.ts';
import { Refusal } from '../model/refusal.ts';
import { isGoneVmmState } from '../model/states.ts';
import type { ActivityContext } from './context.ts';
import { whileHeartbeating } from './heartbeats.ts';
import { instrumented } from './instrumented.ts';

/** How often an instance that is waited for is looked at, in milliseconds. */
const LOOK_EVERY_MS = 200;

export type DrainActivities = ReturnType<typeof createDrainActivities>;

export interface PlanMoveRequest {
  readonly instanceId: string;
  readonly sledId: string;
  /** Where a migration of this instance has failed before: picked only when there is nothing else. */
  readonly avoidSledIds: readonly string[];
  /** How long to wait for an instance that is between two states, in milliseconds. */
  readonly waitMs: number;
}

/** What is to be done about an instance on a sled that is drained. */
export type MovePlan =
  | { readonly do: 'left'; readonly how: 'moved' | 'ended' }
  | { readonly do: 'wait'; readonly until: string }
  | { readonly do: 'move'; readonly to: { readonly id: string; readonly name: string } }
  | { readonly do: 'no-place'; readonly reason: string };

/** Makes the activities of drains. */
export function createDrainActivities({ db, metrics }: Pick<ActivityContext, 'db' | 'metrics'>) {
  async function plan(request: PlanMoveRequest): Promise<MovePlan> {
    const record = await readInstance(db, request.instanceId);
    if (record === null) return { do: 'left', how: 'ended' };
    const { instance, active, target, externalState } = record;
    const on = (vmm: typeof active) => vmm !== null && vmm.sledId === request.sledId;
    // One that has ended here and is still named waits for the update, which says where the guest is now.
    const activeHere = on(active) && active?.state !== 'saga_unwound';
    const targetHere = on(target) && target !== null && !isGoneVmmState(target.state);
    const place: DrainPlace = activeHere ? 'active' : targetHere ? 'target' : 'elsewhere';
    switch (drainStep(externalState, place)) {
      case 'left':
        return {
          do: 'left',
          how: instance.timeDeleted === null && !['stopped', 'failed'].includes(externalState) ? 'moved' : 'ended',
        };
      case 'wait':
        return { do: 'wait', until: place === 'target' ? 'it has arrived here' : `it is ${externalState}` };
      case 'move': {
        const placement: PlacementRequest = {
          instanceId: instance.id,
          ncpus: instance.ncpus,
          memoryBytes: instance.memoryBytes,
          cpuModel: active?.cpuModel,
          excludeSledIds: [request.sledId],
        };
        const avoiding = { ...placement, excludeSledIds: [request.sledId, ...request.avoidSledIds] };
        const to = (await pickSled(db, avoiding)) ?? (await pickSled(db, placement));
        if (to !== null) return { do: 'move', to: { id: to.id, name: to.name } };
        return { do: 'no-place', reason: await explainNoSled(db, placement) };
      }
    }
  }

  return instrumented(metrics, {
    /** Takes the sled out of service for new VMMs, so that it can become empty. Final when the sled is expunged. */
    async beginDrain(request: { sledId: string }): Promise<void> {
      await setSledPolicy(db, request.sledId, 'no_provision');
    },

    /** Reads what there is to do. */
    async readDrainWork(request: { sledId: string }): Promise<DrainWork> {
      const work = await readDrainWork(db, request.sledId);
      if (work === null) throw Refusal.notFound('sled', request.sledId);
      return work;
    },

    /** Says what is to be done about an instance; one that is between two states is waited for, within a bound. */
    planMove(request: PlanMoveRequest): Promise<MovePlan> {
      return whileHeartbeating(async () => {
        const end = performance.now() + request.waitMs;
        for (;;) {
          const planned = await plan(request);
          if (planned.do !== 'wait' || performance.now() > end) return planned;
          await pause(LOOK_EVERY_MS, undefined, { signal: cancellationSignal() });
        }
      });
    },
  });
}
