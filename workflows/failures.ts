import {
  ActivityFailure,
  ApplicationFailure,
  CancelledFailure,
  isCancellation,
  TimeoutFailure,
} from '@temporalio/workflow';
import type { FailureType, OperationError } from '../model/failures.ts';

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

/** The type of the failure behind a step's or a workflow's error; `Cancelled` and `Timeout` where it has none of its own. */
export function failureTypeOf(error: unknown): string | null {
  if (isCancellation(error)) return 'Cancelled';
  const type = applicationFailure(error)?.type;
  if (type) return type;
  return error instanceof ActivityFailure && error.cause instanceof TimeoutFailure ? 'Timeout' : null;
}

/** What went wrong, in one line. */
export function messageOf(error: unknown): string {
  const inner =
    applicationFailure(error) ?? (error instanceof Error && error.cause instanceof Error ? error.cause : error);
  return inner instanceof Error ? inner.message : String(inner);
}

/** Where an unwind leaves the instance, and what its user can do next. */
const NEXT: Readonly<Record<string, string>> = {
  'the start': '; the instance is stopped and holds nothing: start it again',
  'the migration': '; the instance stays where it was: migrate it again, or to another sled',
};

/**
 * What the caller of the operation is told of a step's error. `what` names the operation; `sled` the one that it was
 * placed on, for a time-out, which says nothing of it.
 */
export function errorBodyOf(error: unknown, what: string, sled?: string): OperationError {
  if (isCancellation(error)) {
    return { status: 409, error_code: 'Conflict', message: `${what} was cancelled by an operator; ask for it again` };
  }
  const failure = applicationFailure(error);
  const body = failure?.details?.[0] as OperationError | undefined;
  if (body !== undefined && failure?.type === 'Refusal')
    return { ...body, message: `${what} was refused, and nothing was written: ${body.message}` };
  if (body !== undefined)
    return { ...body, message: `${what} failed and was undone: ${body.message}${NEXT[what] ?? ''}` };
  const timedOut = error instanceof ActivityFailure && error.cause instanceof TimeoutFailure && sled !== undefined;
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const reason = timedOut
    ? `sled "${sled}" gave no answer in time`
    : (failure?.message ?? (inner instanceof Error ? inner.message : String(inner)));
  return {
    status: 503,
    error_code: 'ServiceUnavailable',
    message: `${what} failed and was undone: ${reason}${NEXT[what] ?? ''}`,
  };
}

/** The failure that closes an operation's workflow: its message is what a person reads in the Web UI. */
export function operationFailure(type: string, body: OperationError, cause: unknown): ApplicationFailure {
  const failure = ApplicationFailure.create({
    type,
    message: body.message,
    nonRetryable: true,
    details: [body],
    ...(cause instanceof Error && !(cause instanceof CancelledFailure) ? { cause } : {}),
  });
  // A verdict, not a fault of the code: where it was made says nothing.
  failure.stack = '';
  return failure;
}
