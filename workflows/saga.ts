/**
 * The skeleton of a saga that makes a VMM: its steps, and what undoes them. `instance-start` and `instance-migrate` are its
 * two uses.
 *
 * The compensation stands before the first step, since a step that failed may have taken effect, and a claim that never
 * arrived must not arrive later. It runs out of reach of a cancellation, and each of its steps goes on until it has a
 * definitive answer. A step that was refused for a reason in the request has written nothing, and nothing is undone.
 *
 * An attempt whose sled gave no answer before anything was commanded there may be given up for another one, with a VMM of its
 * own: the same operation goes on, and its caller hears how that ends.
 *
 * A cancellation says nothing about how far the attempt has come: where its steps were done in a workflow task that is done
 * again because of it, they may all have taken effect.
 */
import { CancellationScope, isCancellation, log, uuid4, workflowInfo } from '@temporalio/workflow';
import type { Attempt } from '../model/attempt.ts';
import type { OperationKind } from '../model/states.ts';
import { failedWith, laterRefusal, messageOf, operationError, operationFailure } from './failures.ts';
import { endAttempt, giveUpAttempt } from './unwind.ts';

/** The steps can be done elsewhere: this attempt is given up, and another one begun. */
export class TryElsewhere extends Error {
  override readonly name = 'TryElsewhere';
}

/** What undoes a saga, as its log line has it. */
const COMPENSATION = { start: 'unwind the VMM', migrate: 'unwind the target VMM' } as const satisfies Record<
  OperationKind,
  string
>;

export interface VmmSaga<Result> {
  readonly kind: OperationKind;
  readonly instanceId: string;
  /** The steps, in order. What they throw ends the saga; {@link TryElsewhere}, with its cause, this attempt alone. */
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
  /** Why the attempt before this one was given up. */
  let before: unknown = null;
  for (;;) {
    // Made once, so that each step, however often it is tried, speaks of the same VMM.
    const attempt: Attempt = { kind, instanceId, vmmId: uuid4(), operationId, workflowId };
    try {
      return await saga.steps(attempt);
    } catch (failure) {
      if (failure instanceof TryElsewhere) {
        before = failure.cause;
        if (await givesUp(saga, attempt, before)) continue;
        return saga.spared(attempt);
      }
      return undo(saga, attempt, failure, before);
    }
  }
}

/** Gives an attempt up for another one; `false` where its guest runs after all. */
async function givesUp<Result>(saga: VmmSaga<Result>, attempt: Attempt, failure: unknown): Promise<boolean> {
  log.info('going on elsewhere', { vmm_id: attempt.vmmId, reason: messageOf(failure) });
  const input = { ...attempt, spareRunning: saga.sparesRunning(failure), error: operationError(saga.kind, failure) };
  return (await CancellationScope.nonCancellable(() => giveUpAttempt(input))) === 'unwound';
}

/** Undoes an attempt, and throws what that comes to; returns the saga's result where its guest runs after all. */
async function undo<Result>(
  saga: VmmSaga<Result>,
  attempt: Attempt,
  failure: unknown,
  before: unknown,
): Promise<Result> {
  const { kind } = saga;
  const refused = failedWith(failure, 'Refusal');
  const error = refused && before !== null ? laterRefusal(kind, failure, before) : operationError(kind, failure);
  if (refused && before === null) throw operationFailure(kind, 'refused', error, failure);
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
