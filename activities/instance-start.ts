import { activityInfo } from '@temporalio/activity';
import { type ClaimedVmm, type ClaimStartRequest, claimStart } from '../db/transactions/claim-start.ts';
import { recordSucceededOperation } from '../db/transactions/succeed-operation.ts';
import type { Attempt } from '../model/attempt.ts';
import { commandVmm } from './command-vmm.ts';
import type { ActivityContext } from './context.ts';
import type { SledAddress } from './sled-client.ts';

/** The steps of a start. */
export function startActivities(context: ActivityContext) {
  const { db } = context;
  return {
    /** Claims the VMM. `null` when the instance is started already. */
    async claimStart(request: Omit<ClaimStartRequest, 'isRetry'> & { isRetry?: true }): Promise<ClaimedVmm | null> {
      const { attempt, isLocal } = activityInfo();
      // A workflow task that was lost has its local activities run again as if for the first time.
      const isRetry = request.isRetry === true || isLocal || attempt > 1;
      const claim = await claimStart(db, { ...request, isRetry });
      if (claim === null) await recordSucceededOperation(db, { ...request, kind: 'start' });
      return claim;
    },

    /** Commands the sled to run the guest, and records the start's success with the sled's answer. */
    async runVmm(attempt: Attempt & { sled: SledAddress }): Promise<void> {
      await commandVmm(context, attempt, { type: 'running' }, { readIntent: true });
    },
  };
}
