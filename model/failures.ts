/** The error body that a failed operation's caller gets. */
export interface OperationError {
  /** The HTTP status. */
  readonly status: number;
  readonly error_code: string;
  readonly message: string;
}

/**
 * Why a step failed: the types of the failures that activities throw and workflows decide by. What each means is in the
 * table beside it.
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
