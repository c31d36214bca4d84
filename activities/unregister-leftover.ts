import { readVmmPlace } from '../db/queries/read-vmm-place.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import { isGoneVmmState } from '../model/states.ts';
import type { SagaContext } from './context.ts';
import { automaticActor } from './record-action.ts';
import { applyAnswer, sledOf, unregisterFromSled } from './sled-calls.ts';

/** The step that ends a leftover VMM. */
export function unregisterActivities(context: SagaContext) {
  const { db, sleds, workflows } = context;
  return {
    /** Ends a living VMM that its instance does not name any more. Returns what was found or done. */
    async unregisterLeftover({ vmmId }: { vmmId: string }): Promise<string> {
      const place = await readVmmPlace(db, vmmId);
      if (place === null || place.deleted || isGoneVmmState(place.state)) return 'gone already';
      if (place.linked) return 'named by its instance: not a leftover';
      if (place.unwinding) return 'being unwound by its saga';
      const sled = sledOf(place);
      if (place.givenUp || sled === null) {
        await markFailed(vmmId, 'its sled was given up');
        return 'its sled was given up';
      }
      await applyAnswer(context, vmmId, await unregisterFromSled(sleds, sled, vmmId));
      await markFailed(vmmId, 'it was unregistered as a leftover');
      return 'unregistered';
    },
  };

  async function markFailed(vmmId: string, reason: string): Promise<void> {
    const instanceId = await failVmm(db, vmmId, reason, automaticActor('clean-up of leftovers'));
    if (instanceId !== null) await workflows.signalUpdate(instanceId);
  }
}
