/** Reads what Temporal wraps a step's failure in; what the failure means is in `model/failures.ts`. */
import {
  ActivityFailure,
  ApplicationFailure,
  CancelledFailure,
  isCancellation,
  TimeoutFailure,
} from '@temporalio/workflow';
import {
  describeOperationFailure,
  errorBody,
  FAILURES,
  type FailureType,
  OPERATION_FAILURES,
  type OperationError,
  type OperationFailureOutcome,
} from '../model/failures.ts';
import type { OperationKind } from '../model/states.ts';

/** The application failure behind a step's error, or `null`. */
function applicationFailure(error: unknown): ApplicationFailure | null {
  if (error instanceof ApplicationFailure) return error;
  if (error instanceof ActivityFailure || error instanceof TimeoutFailure) return applicationFailure(error.cause);
  return null;
}

/** Whether a step failed with a failure of the given type. */
export function failedWith(error: unknown, type: FailureType): boolean {
  return applicationFailure(error)?.type === type;
}

/** Whether a step, local or not, failed in a way that trying again can't mend. */
export function isFinalFailure(error: unknown): boolean {
  return applicationFailure(error)?.nonRetryable === true;
}

/**
 * Whether a step ran out of its time without any answer. A local activity's time-out is within an `ActivityFailure` when it happens,
 * and stands alone when it is read from the history.
 */
export function isTimeout(error: unknown): boolean {
  return (error instanceof ActivityFailure ? error.cause : error) instanceof TimeoutFailure;
}

/** The type of the failure behind a step's or a workflow's error; `Cancelled` and `Timeout` where it has none of its own. */
export function failureTypeOf(error: unknown): string | null {
  if (isCancellation(error)) return 'Cancelled';
  return applicationFailure(error)?.type || (isTimeout(error) ? 'Timeout' : null);
}

/** What went wrong, in one line. */
export function messageOf(error: unknown): string {
  const inner =
    applicationFailure(error) ?? (error instanceof Error && error.cause instanceof Error ? error.cause : error);
  return inner instanceof Error ? inner.message : String(inner);
}

/** A step's failure of the given type, for what a workflow finds out by itself: final, with the body of the type's code. */
export function stepFailure(type: FailureType, message: string, cause?: unknown): ApplicationFailure {
  return verdict(type, message, errorBody(FAILURES[type].code, message), cause);
}

/** What the caller of an operation is answered when a step's error ended it. */
export function operationError(kind: OperationKind, error: unknown): OperationError {
  return describeOperationFailure(kind, {
    cancelled: isCancellation(error),
    type: failureTypeOf(error),
    body: (applicationFailure(error)?.details?.[0] as OperationError | undefined) ?? null,
    message: messageOf(error),
  });
}

/**
 * What the caller of an operation is answered when a claim was refused after an earlier attempt had been given up: that no
 * other sled takes it is no reason of its own.
 */
export function laterRefusal(kind: OperationKind, refusal: unknown, before: unknown): OperationError {
  const why = applicationFailure(refusal)?.details?.[0] as OperationError | undefined;
  const body =
    why !== undefined && why.error_code !== 'InsufficientCapacity'
      ? why
      : errorBody('ServiceUnavailable', `${messageOf(before)}, and no other sled takes it: ${messageOf(refusal)}`);
  return describeOperationFailure(kind, { cancelled: false, type: null, body, message: body.message });
}

/** The failure that closes an operation's workflow: its message is what a person reads in the Web UI. */
export function operationFailure(
  kind: OperationKind,
  outcome: OperationFailureOutcome,
  body: OperationError,
  cause: unknown,
): ApplicationFailure {
  return verdict(OPERATION_FAILURES[kind][outcome], body.message, body, cause);
}

function verdict(type: string, message: string, body: OperationError, cause: unknown): ApplicationFailure {
  const failure = ApplicationFailure.create({
    type,
    message,
    nonRetryable: true,
    details: [body],
    ...(cause instanceof Error && !(cause instanceof CancelledFailure) ? { cause } : {}),
  });
  // It is a decision, not a fault of the code: where it was made explains nothing.
  failure.stack = '';
  return failure;
}
