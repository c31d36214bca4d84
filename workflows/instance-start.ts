/**
 * The instance-start saga: from a Stopped or Failed instance to one whose sled agent has accepted to run it.
 *
 * It guarantees: when it returns, the VMM is its sled agent's; when it fails, the instance already shows what it showed
 * before, holds nothing of the attempt, and can be started at once, whether or not an update ever runs (Omicron PR #5855).
 *
 * Who else touches these rows: the sled agent's reports write the VMM's state; the user writes the intent, which is read
 * in the same transaction that marks the VMM as "about to be told"; the update saga alone clears the instance's ids.
 */
import { CancellationScope, uuid4, workflowInfo } from '@temporalio/workflow';
import type { InstanceStartInput, InstanceStartResult } from '../model/workflow-inputs.ts';
import { database, startSteps, untilDefinitive } from './activities.ts';
import { errorBodyOf, failedWith, operationFailure } from './failures.ts';
import { Saga } from './saga.ts';
import { unwindVmm } from './unwind.ts';

export async function instanceStart(input: InstanceStartInput): Promise<InstanceStartResult> {
  const { instanceId } = input;
  const { workflowId, firstExecutionRunId: operationId } = workflowInfo();
  // Made here, so that every attempt of every step speaks of the same VMM.
  const vmmId = uuid4();
  const attempt = { kind: 'start' as const, instanceId, vmmId, operationId, workflowId };
  const { claimStart, registerVmm } = startSteps(input.registerTimeoutMs);
  const saga = new Saga({ vmm_id: vmmId });
  let failure: unknown;
  let spared = false;
  let sled: string | undefined;
  saga.compensateWith('unwind the VMM', async () => {
    const spareRunning = !failedWith(failure, 'NoSuchVmm');
    spared =
      (await unwindVmm({ ...attempt, spareRunning, error: errorBodyOf(failure, 'the start', sled) })) === 'spared';
  });

  try {
    const claim = await claimStart({ ...attempt, reason: input.reason });
    if (claim === null) return { outcome: 'already started' };
    sled = claim.sledName;
    await registerVmm({ ...claim, instanceId });
    await untilDefinitive.runVmm({ ...attempt, sled: { name: claim.sledName, address: claim.sledAddress } });
    return { outcome: 'started', vmmId, sled: claim.sledName };
  } catch (error) {
    // A refused claim has written nothing.
    if (failedWith(error, 'Refusal'))
      throw operationFailure('InstanceStartRefused', errorBodyOf(error, 'the start'), error);
    failure = error;
    await saga.unwind();
    if (!spared) throw operationFailure('InstanceStartUnwound', errorBodyOf(error, 'the start', sled), error);
    // The sled refused a second word to a guest that it has reported as running, or that has moved on: the start has succeeded.
    await CancellationScope.nonCancellable(() => database.succeedOperation(attempt));
    return { outcome: 'started', vmmId };
  }
}
