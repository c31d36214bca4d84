/**
 * What a failure means, in one place: whether trying again is pointless, which error code and HTTP status follow from it,
 * and what the one who asked for the operation is answered. Activities class their errors by it (`activities/failures.ts`),
 * workflows decide and answer by it, the API passes the answer on.
 */
import { REFUSAL_STATUS, type Refusal, type RefusalCode } from './refusal.ts';
import type { OperationKind } from './states.ts';

/** The error body that a failed operation's caller gets. */
export interface OperationError {
  /** The HTTP status. */
  readonly status: number;
  readonly error_code: string;
  readonly message: string;
}

/** Makes the error body of a code; its status follows from the code. */
export function errorBody(code: RefusalCode, message: string): OperationError {
  return { status: REFUSAL_STATUS[code], error_code: code, message };
}

/** The error body of a refusal. */
export function refusalBody({ code, message }: Refusal): OperationError {
  return errorBody(code, message);
}

interface FailureMeaning {
  /** Trying the same step again can't mend it. */
  readonly final: boolean;
  readonly code: RefusalCode;
}

/**
 * Why a step failed, by the type of the failure that its activity throws. What is not named here is tried again: a fault that
 * nobody foresaw decides nothing.
 */
export const FAILURES = {
  /** The request can't be done; nothing was written. Its body says why, with a code of its own. */
  Refusal: { final: true, code: 'Conflict' },
  /** The sled agent's answer is final. */
  SledRefused: { final: true, code: 'ServiceUnavailable' },
  /** The sled agent does not know the VMM: the only answer that means "gone". */
  NoSuchVmm: { final: true, code: 'ServiceUnavailable' },
  /** The sled was expunged, declared dead or stated to be off: its VMMs are gone because an operator says so. */
  SledExpunged: { final: true, code: 'ServiceUnavailable' },
  /** The user asked for stop while the saga was on its way. */
  StopRequested: { final: true, code: 'Conflict' },
  /** The VMM ended before its sled was commanded to run it. */
  VmmLost: { final: true, code: 'ServiceUnavailable' },
  /** An earlier run of the same attempt, whose workflow task was lost, has unwound it: its error is the operation's. */
  AlreadyUnwound: { final: true, code: 'ServiceUnavailable' },
  /** An earlier migration left something that the update has not cleared within the saga's own time. */
  UpdatePending: { final: true, code: 'Conflict' },
  /** The sled gave no answer within the step's whole time. */
  Timeout: { final: true, code: 'ServiceUnavailable' },
  /** No definitive answer yet. */
  SledUnavailable: { final: false, code: 'ServiceUnavailable' },
  DatabaseUnavailable: { final: false, code: 'ServiceUnavailable' },
} as const satisfies Record<string, FailureMeaning>;
export type FailureType = keyof typeof FAILURES;

/** The failure that closes the workflow of an operation, by what became of the operation. */
export const OPERATION_FAILURES = {
  start: { refused: 'InstanceStartRefused', unwound: 'InstanceStartUnwound' },
  migrate: { refused: 'InstanceMigrateRefused', unwound: 'InstanceMigrateUnwound' },
} as const satisfies Record<OperationKind, { refused: string; unwound: string }>;
export type OperationFailureOutcome = keyof (typeof OPERATION_FAILURES)[OperationKind];

/** How the operation ended that a failure of this type closed; `null` for any other failure. */
export function operationOutcomeOf(failureType: string | null): OperationFailureOutcome | null {
  for (const types of Object.values(OPERATION_FAILURES)) {
    for (const [outcome, type] of Object.entries(types))
      if (type === failureType) return outcome as OperationFailureOutcome;
  }
  return null;
}

/** What is known of the step that ended an operation. */
export interface StepFailure {
  /** An operator cancelled the workflow. */
  readonly cancelled: boolean;
  readonly type: string | null;
  /** What the step answered, where it answered anything. */
  readonly body: OperationError | null;
  readonly message: string;
}

const NOUN = { start: 'the start', migrate: 'the migration' } as const satisfies Record<OperationKind, string>;
/** Where an unwind leaves the instance, and what its user can do next. */
const NEXT = {
  start: 'the instance is stopped and holds nothing: start it again',
  migrate: 'the instance stays where it was: migrate it again, or to another sled',
} as const satisfies Record<OperationKind, string>;

/** What the caller of an operation is answered when this ended it. */
export function describeOperationFailure(kind: OperationKind, failure: StepFailure): OperationError {
  const what = NOUN[kind];
  if (failure.cancelled) return errorBody('Conflict', `${what} was cancelled by an operator; ask for it again`);
  if (failure.type === 'AlreadyUnwound' && failure.body !== null) return failure.body;
  const body = failure.body ?? errorBody('ServiceUnavailable', failure.message);
  return {
    ...body,
    message:
      failure.type === 'Refusal' && failure.body !== null
        ? `${what} was refused, and nothing was written: ${body.message}`
        : `${what} failed and was undone: ${body.message}; ${NEXT[kind]}`,
  };
}
