/**
 * The instance-start saga: from a Stopped or Failed instance to one whose sled agent has accepted to run it.
 *
 * It guarantees: when it returns, the VMM is its sled agent's; when it fails, the instance already shows what it showed
 * before, holds nothing of the attempt, and can be started at once, whether or not an update ever runs (Omicron PR #5855).
 *
 * A sled that gives no answer to `register` costs a start a part of its time, not its success: where another sled answers and
 * takes the instance, the start goes on there with a VMM of its own. The first one is unwound before; it was never told to run.
 *
 * Who else touches these rows: the sled agent's reports write the VMM's state; the user writes the intent, which is read
 * in the same transaction that marks the VMM as about to be commanded; the update saga alone clears the instance's ids.
 */
import { isCancellation } from '@temporalio/workflow';
import type { InstanceStartInput, InstanceStartResult } from '../model/workflow-inputs.ts';
import { failedWith, isFinalFailure } from './failures.ts';
import { runSaga, TryElsewhere } from './saga.ts';
import { claimStart, DEFAULT_REGISTER_TIMEOUT_MS, readOtherSleds, registerVmm, runVmm } from './steps.ts';

/**
 * How long one sled has to register the VMM as long as others may take it, in milliseconds: one that is only slow should not
 * lose it.
 */
const ONE_SLED_MS = 3_000;

export async function instanceStart(input: InstanceStartInput): Promise<InstanceStartResult> {
  const { instanceId, reason } = input;
  let leftMs = input.registerTimeoutMs ?? DEFAULT_REGISTER_TIMEOUT_MS;
  /** Sleds that gave this start no answer: its next attempt passes them over. */
  let silentSledIds: readonly string[] = [];
  return runSaga<InstanceStartResult>({
    kind: 'start',
    instanceId,
    async steps(attempt) {
      const elsewhere = silentSledIds.length === 0 ? {} : { silentSledIds };
      const claim = await claimStart({ ...attempt, ...elsewhere, reason });
      if (claim === null) return { outcome: 'already started' };
      const lookedAtMs = await register(claim);
      const sled = { name: claim.sledName, address: claim.sledAddress, keptAgentId: claim.sledAgentId ?? null };
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

  /** Registers the VMM; as long as its sled gives no answer and there is time, it looks for another one now and then. */
  async function register(claim: NonNullable<Awaited<ReturnType<typeof claimStart>>>): Promise<number> {
    for (;;) {
      const partMs = Math.min(ONE_SLED_MS, leftMs);
      leftMs -= partMs;
      try {
        return await registerVmm(partMs)({ ...claim, instanceId });
      } catch (failure) {
        if (leftMs === 0 || !gaveNoAnswer(failure)) throw failure;
        const others = await otherSleds([...silentSledIds, claim.sledId]);
        // Where nobody else would do better, the sled may yet answer.
        if (others !== null) {
          silentSledIds = others.silentSledIds;
          throw new TryElsewhere(`sled "${claim.sledName}" gave no answer`, { cause: failure });
        }
      }
    }
  }

  /** Those to pass over, where another sled answers that takes the instance; `null` where none does, or nobody can say. */
  function otherSleds(passOver: readonly string[]) {
    return readOtherSleds({ instanceId, silentSledIds: passOver }).catch((error: unknown) => {
      if (isCancellation(error) || isFinalFailure(error)) throw error;
      return null;
    });
  }
}

/** Whether registering ended for want of an answer that settles anything. */
function gaveNoAnswer(failure: unknown): boolean {
  return failedWith(failure, 'Timeout') || failedWith(failure, 'SledUnavailable');
}
