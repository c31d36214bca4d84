import { ApplicationFailure } from '@temporalio/common';
import { databaseError } from '../db/errors.ts';
import { FAILURE_TYPES, type FailureType, type OperationError } from '../model/failures.ts';
import { Refusal } from '../model/refusal.ts';
import { SledError } from './sled-client.ts';

/** Makes a failure that is final, with the error body that the operation's caller gets. */
export function finalFailure(type: FailureType, message: string, body: OperationError): ApplicationFailure {
  return withoutStack(ApplicationFailure.create({ type, message, nonRetryable: true, details: [body] }));
}

/** What a sled or the rules say is a verdict, not a fault of the code: in the Web UI its stack would hide the message. */
function withoutStack(failure: ApplicationFailure): ApplicationFailure {
  failure.stack = '';
  return failure;
}

/** Classes any error of an activity. Failures that are classed already pass through. */
export function classifyFailure(error: unknown): unknown {
  if (error instanceof ApplicationFailure) return error;
  if (error instanceof Refusal) {
    return finalFailure(FAILURE_TYPES.refusal, error.message, {
      status: error.status,
      error_code: error.code,
      message: error.message,
    });
  }
  if (error instanceof SledError) {
    const body = { status: 503, error_code: 'ServiceUnavailable', message: error.message };
    switch (error.kind) {
      case 'gone':
        return finalFailure(FAILURE_TYPES.noSuchVmm, error.message, body);
      case 'refused':
        return finalFailure(FAILURE_TYPES.sledRefused, error.message, body);
      case 'unavailable':
        return withoutStack(
          ApplicationFailure.create({ type: FAILURE_TYPES.sledUnavailable, message: error.message, details: [body] }),
        );
    }
  }
  const cause = databaseError(error);
  if (cause !== null) {
    return ApplicationFailure.create({
      type: FAILURE_TYPES.databaseUnavailable,
      message: `PostgreSQL: ${cause.message}`,
    });
  }
  return error;
}
