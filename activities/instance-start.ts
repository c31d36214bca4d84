import { type ClaimedVmm, type ClaimStartRequest, claimStart } from '../db/transactions/claim-start.ts';
import { type CommandedAttempt, commandVmm } from './command-vmm.ts';
import type { SagaContext } from './context.ts';

/** The steps of a start. */
export function startActivities(context: SagaContext) {
  const { db } = context;
  return {
    /** Claims the VMM. `null` when the instance is started already. */
    async claimStart(request: ClaimStartRequest): Promise<ClaimedVmm | null> {
      return claimStart(db, request);
    },

    /** Commands the sled to run the guest, and records the start's success with the sled's answer. */
    async runVmm(attempt: CommandedAttempt): Promise<void> {
      await commandVmm(context, attempt, { type: 'running' }, { readIntent: true });
    },
  };
}
