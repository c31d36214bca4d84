/**
 * The skeleton of a saga that makes a VMM: its steps, and what undoes them. `instance-start` and `instance-migrate` are its
 * two uses.
 *
 * The compensation stands before the first step, since a step that failed may have taken effect, and a claim that never
 * arrived must not arrive later. It runs out of reach of a cancellation, and each of its steps goes on until it has a
 * definitive answer. A step that was refused for a reason in the request has written nothing, and nothing is undone.
 *
 * A cancellation says nothing about how far the attempt has come: where its steps were done in a workflow task that is done
 * again because of it, they may all have taken effect.
 */
import { CancellationScope, isCancellation, log, uuid4, workflowInfo } from '@temporalio/workflow';
import type { Attempt } from '../model/attempt.ts';
import type { OperationKind } from '../model/states.ts';
import { failedWith, operationError, operationFailure } from './failures.ts';
import { endAttempt } from './unwind.ts';

/** What undoes a saga, as its log line has it. */
const COMPENSATION = { start: 'unwind the VMM', migrate: 'unwind the target VMM' } as const satisfies Record<
  OperationKind,
  string
>;

export interface VmmSaga<Result> {
  readonly kind: OperationKind;
  readonly instanceId: string;
  /** The steps, in order. What they throw ends the saga. */
  steps(attempt: Attempt): Promise<Result>;
  /** Whether a VMM whose sled has reported that its guest runs is left alone by the unwind that follows this failure. */
  sparesRunning(failure: unknown): boolean;
  /** Whether it was the sled's answer to its command that ended the steps: then nothing is past a point of no return. */
  wasRefused(): boolean;
  /** The result when the VMM was spared: the operation has succeeded after all. */
  spared(attempt: Attempt): Result;
}

/**
 * Runs a saga. Throws the failure that closes its workflow: `…Refused` when nothing was written, `…Unwound` when the attempt
 * is undone and the instance holds nothing of it.
 */
export async function runSaga<Result>(saga: VmmSaga<Result>): Promise<Result> {
  const { kind, instanceId } = saga;
  const { workflowId, firstExecutionRunId: operationId } = workflowInfo();
  // Made once, so that each step, however often it is tried, speaks of the same VMM.
  const attempt: Attempt = { kind, instanceId, vmmId: uuid4(), operationId, workflowId };
  try {
    return await saga.steps(attempt);
  } catch (failure) {
    const error = operationError(kind, failure);
    if (failedWith(failure, 'Refusal')) throw operationFailure(kind, 'refused', error, failure);
    // The workflow task in which that was done was lost as it ended.
    if (failedWith(failure, 'AlreadyUnwound')) throw operationFailure(kind, 'unwound', error, failure);
    return CancellationScope.nonCancellable(async () => {
      log.info('compensating', { vmm_id: attempt.vmmId, compensation: COMPENSATION[kind] });
      const ended = await endAttempt(
        { ...attempt, spareRunning: saga.sparesRunning(failure), refused: saga.wasRefused(), error },
        { cutOff: isCancellation(failure) },
      );
      if (ended.outcome === 'unwound') throw operationFailure(kind, 'unwound', ended.error, failure);
      return saga.spared(attempt);
    });
  }
}
