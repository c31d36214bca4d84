/**
 * The instance-start saga: from a Stopped or Failed instance to one whose sled agent has accepted to run it.
 *
 * It guarantees: when it returns, the VMM is its sled agent's; when it fails, the instance already shows what it showed
 * before, holds nothing of the attempt, and can be started at once, whether or not an update ever runs (Omicron PR #5855).
 *
 * Who else touches these rows: the sled agent's reports write the VMM's state; the user writes the intent, which is read
 * in the same transaction that marks the VMM as about to be commanded; the update saga alone clears the instance's ids.
 */
import type { InstanceStartInput, InstanceStartResult } from '../model/workflow-inputs.ts';
import { failedWith } from './failures.ts';
import { runSaga } from './saga.ts';
import { claimStart, registerVmm, runVmm } from './steps.ts';

export async function instanceStart(input: InstanceStartInput): Promise<InstanceStartResult> {
  const { instanceId, reason } = input;
  const register = registerVmm(input.registerTimeoutMs);
  return runSaga<InstanceStartResult>({
    kind: 'start',
    instanceId,
    async steps(attempt) {
      const claim = await claimStart({ ...attempt, reason });
      if (claim === null) return { outcome: 'already started' };
      const lookedAtMs = await register({ ...claim, instanceId });
      const sled = { name: claim.sledName, address: claim.sledAddress };
      await runVmm({ ...attempt, sled, lookedAtMs });
      return { outcome: 'started', vmmId: attempt.vmmId, sled: claim.sledName };
    },
    // Its sled refused a second command to a guest that it has reported as running, or that has moved on. But a sled that
    // does not know the VMM does not run it, whatever its row says.
    sparesRunning: (failure) => !failedWith(failure, 'NoSuchVmm'),
    // A guest that was told to run is ended by an unwind, whoever told it.
    wasRefused: () => true,
    spared: ({ vmmId }) => ({ outcome: 'started', vmmId }),
  });
}
