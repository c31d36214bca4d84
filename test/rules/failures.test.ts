import type { ApplicationFailure } from '@temporalio/common';
import { describe, expect, test } from 'vitest';
import { classifyFailure, stepFailure } from '../../activities/failures.ts';
import { SledError } from '../../activities/sled-client.ts';
import { AlreadyUnwound } from '../../db/transactions/refuse-operation.ts';
import {
  describeOperationFailure,
  errorBody,
  FAILURES,
  type FailureType,
  OPERATION_FAILURES,
  operationOutcomeOf,
  type StepFailure,
} from '../../model/failures.ts';
import { REFUSAL_STATUS, Refusal, type RefusalCode } from '../../model/refusal.ts';

const failure = (of: Partial<StepFailure>): StepFailure => ({
  cancelled: false,
  type: null,
  body: null,
  message: 'it broke',
  ...of,
});

describe('what a failure means', () => {
  test.each(Object.keys(FAILURES) as FailureType[])(
    '%s: thrown as final or not, with the status of its code',
    (type) => {
      const { final, code } = FAILURES[type];
      const thrown = stepFailure(type, 'why');
      expect(thrown).toMatchObject({ type, message: 'why', nonRetryable: final });
      expect(thrown.details?.[0]).toEqual({ status: REFUSAL_STATUS[code], error_code: code, message: 'why' });
    },
  );

  test('only a silent sled and an absent database are tried again', () => {
    const types = Object.keys(FAILURES) as FailureType[];
    expect(types.filter((type) => !FAILURES[type].final).sort()).toEqual(['DatabaseUnavailable', 'SledUnavailable']);
  });

  test.each(Object.keys(REFUSAL_STATUS) as RefusalCode[])(
    'a refusal with %s is final, and keeps its own code',
    (code) => {
      const classed = classifyFailure(new Refusal(code, 'why')) as ApplicationFailure;
      expect(classed).toMatchObject({ type: 'Refusal', nonRetryable: true });
      expect(classed.details?.[0]).toEqual({ status: REFUSAL_STATUS[code], error_code: code, message: 'why' });
    },
  );

  test('a sled that does not know a VMM, refuses, or gives no answer', () => {
    const typeOf = (kind: SledError['kind']) => classifyFailure(new SledError(kind, 'why')) as ApplicationFailure;
    expect(typeOf('gone')).toMatchObject({ type: 'NoSuchVmm', nonRetryable: true });
    expect(typeOf('refused')).toMatchObject({ type: 'SledRefused', nonRetryable: true });
    expect(typeOf('unavailable')).toMatchObject({ type: 'SledUnavailable', nonRetryable: false });
  });

  test('an attempt that was unwound before ends with the error that its operation has, as it is', () => {
    const body = errorBody('Conflict', 'the start failed and was undone: the sled refused; start it again');
    const classed = classifyFailure(new AlreadyUnwound(body)) as ApplicationFailure;
    expect(classed).toMatchObject({ type: 'AlreadyUnwound', nonRetryable: true, details: [body] });
    const answer = describeOperationFailure('start', failure({ type: 'AlreadyUnwound', body, message: body.message }));
    expect(answer).toEqual(body);
  });

  test('what nobody foresaw is tried again: it is not classed', () => {
    const unforeseen = new RangeError('a bug');
    expect(classifyFailure(unforeseen)).toBe(unforeseen);
  });

  test('several errors are classed as the first of them, and all are named', () => {
    const several = new AggregateError([new SledError('unavailable', 'a'), new Error('b')], '2 errors: a; b');
    expect(classifyFailure(several)).toMatchObject({ type: 'SledUnavailable', message: '2 errors: a; b' });
  });
});

describe('what the caller of an operation is answered', () => {
  test.each(['start', 'migrate'] as const)('%s: cancelled, refused, failed with an answer and without', (kind) => {
    const what = kind === 'start' ? 'the start' : 'the migration';
    const body = errorBody('InsufficientCapacity', 'no sled has room');
    expect(describeOperationFailure(kind, failure({ cancelled: true }))).toEqual(
      errorBody('Conflict', `${what} was cancelled by an operator; ask for it again`),
    );
    expect(describeOperationFailure(kind, failure({ type: 'Refusal', body }))).toEqual({
      ...body,
      message: `${what} was refused, and nothing was written: no sled has room`,
    });
    const answered = describeOperationFailure(kind, failure({ type: 'SledRefused', body }));
    expect(answered).toMatchObject({ status: 507, error_code: 'InsufficientCapacity' });
    expect(answered.message).toMatch(new RegExp(`^${what} failed and was undone: no sled has room; the instance `));
    expect(describeOperationFailure(kind, failure({}))).toMatchObject({
      status: 503,
      error_code: 'ServiceUnavailable',
    });
  });

  test('the failure that closes a workflow tells how its operation ended', () => {
    for (const types of Object.values(OPERATION_FAILURES)) {
      for (const [outcome, type] of Object.entries(types)) expect(operationOutcomeOf(type)).toBe(outcome);
    }
    expect(operationOutcomeOf('SledRefused')).toBeNull();
    expect(operationOutcomeOf(null)).toBeNull();
  });
});
