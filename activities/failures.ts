import { ApplicationFailure } from '@temporalio/common';
import { databaseError } from '../db/errors.ts';
import type { OperationError } from '../db/schema.ts';
import { Refusal } from '../model/refusal.ts';
import { SledError } from './sled-client.ts';

/**
 * The one place that says which errors of an activity are final and which are to be tried again, and what the caller of
 * the operation gets to see. Anything not named here is tried again: a fault that nobody foresaw is no verdict.
 */
export const FAILURE_TYPES = {
  /** The request can't be done; nothing was written. */
  refusal: 'Refusal',
  /** The sled agent's answer is final. */
  sledRefused: 'SledRefused',
  /** The sled agent does not know the VMM: the only answer that means "gone". */
  noSuchVmm: 'NoSuchVmm',
  /** The sled was expunged: its VMMs are gone by the operator's word. */
  sledExpunged: 'SledExpunged',
  /** The user asked for stop while the saga was on its way. */
  stopRequested: 'StopRequested',
  /** The VMM ended before it was told to run. */
  vmmLost: 'VmmLost',
  /** No definitive answer yet. */
  sledUnavailable: 'SledUnavailable',
  databaseUnavailable: 'DatabaseUnavailable',
} as const;
export type FailureType = (typeof FAILURE_TYPES)[keyof typeof FAILURE_TYPES];

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
