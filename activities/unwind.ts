import { readVmmPlace } from '../db/queries/read-vmm-place.ts';
import { type BeginUnwindRequest, type BegunUnwind, beginUnwind } from '../db/transactions/begin-unwind.ts';
import { type FinishUnwindRequest, finishUnwind } from '../db/transactions/finish-unwind.ts';
import { signalIfNeeded } from '../temporal/signal-update.ts';
import { isTriedAgain } from './attempts.ts';
import { sledNow } from './command-vmm.ts';
import type { SagaContext } from './context.ts';
import { unregisterFromSled } from './sled-calls.ts';
import type { SledAddress } from './sled-client.ts';

/** What undoes a start or a migration, in this order. */
export function unwindActivities({ db, sleds, workflows }: SagaContext) {
  return {
    /** First transaction: from here on no report and no verdict is written to the VMM's row. */
    async beginUnwind(request: BeginUnwindRequest): Promise<BegunUnwind> {
      return beginUnwind(db, request);
    },

    /** Makes sure that the sled does not have the VMM. Returns only at a definitive answer. */
    async unregisterVmm(request: { vmmId: string; sled: SledAddress }): Promise<void> {
      const place = isTriedAgain() ? await readVmmPlace(db, request.vmmId) : null;
      if (place?.givenUp) return;
      await unregisterFromSled(sleds, sledNow(place, request.sled), request.vmmId);
    },

    /** Last transaction; then the update saga is signalled, unless the operation goes on: its next claim replaces the VMM. */
    async finishUnwind(request: FinishUnwindRequest): Promise<void> {
      const names = await finishUnwind(db, request);
      if (request.goesOn) return;
      if (names !== null) await workflows.signalUpdate(request.instanceId, names);
      else await signalIfNeeded({ db, workflows }, request.instanceId);
    },
  };
}
