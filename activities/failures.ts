/** What the errors that activities meet are, as failures of `model/failures.ts`. */
import { ApplicationFailure } from '@temporalio/common';
import { databaseError } from '../db/errors.ts';
import { AlreadyUnwound } from '../db/transactions/refuse-operation.ts';
import { errorBody, FAILURES, type FailureType, refusalBody } from '../model/failures.ts';
import { Refusal } from '../model/refusal.ts';
import { SledError } from './sled-client.ts';

const SLED_FAILURES = {
  gone: 'NoSuchVmm',
  refused: 'SledRefused',
  unavailable: 'SledUnavailable',
} as const satisfies Record<SledError['kind'], FailureType>;

/** Makes a step's failure: final or not as the type says, and with an error body, by default the one of the type's code. */
export function stepFailure(
  type: FailureType,
  message: string,
  body = errorBody(FAILURES[type].code, message),
): ApplicationFailure {
  const failure = ApplicationFailure.create({ type, message, nonRetryable: FAILURES[type].final, details: [body] });
  // What a sled or the rules decide is not a fault of the code: in the Web UI its stack would hide the message.
  failure.stack = '';
  return failure;
}

/** Classes any error of an activity. Failures that are classed already, and errors that nobody foresaw, pass through. */
export function classifyFailure(error: unknown): unknown {
  if (error instanceof ApplicationFailure) return error;
  if (error instanceof Refusal) return stepFailure('Refusal', error.message, refusalBody(error));
  if (error instanceof AlreadyUnwound) return stepFailure('AlreadyUnwound', error.message, error.body);
  if (error instanceof SledError) return stepFailure(SLED_FAILURES[error.kind], error.message);
  if (error instanceof AggregateError) {
    const [first] = error.errors.map(classifyFailure);
    return first instanceof ApplicationFailure && first.type
      ? ApplicationFailure.create({
          type: first.type,
          message: error.message,
          nonRetryable: first.nonRetryable ?? false,
        })
      : error;
  }
  const cause = databaseError(error);
  if (cause !== null)
    return ApplicationFailure.create({
      type: 'DatabaseUnavailable' satisfies FailureType,
      message: `PostgreSQL: ${cause.message}`,
    });
  return error;
}
