/** What an error of Temporal means: every code of gRPC, as the SDK hands it on. */
import { ServiceError } from '@temporalio/client';
import { NamespaceNotFoundError } from '@temporalio/common';
import { describe, expect, test } from 'vitest';
import { describeError } from '../../api/errors.ts';
import { isTemporalUnavailable, refusesSearchAttributes } from '../../temporal/errors.ts';

const CODES = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
};
/** Those of a server that does not serve us at the moment. */
const UNAVAILABLE = [
  'CANCELLED',
  'DEADLINE_EXCEEDED',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'UNAUTHENTICATED',
];

function grpcError(code: number, details = 'said the server'): Error {
  return Object.assign(new Error(`${code}: ${details}`), { code, details });
}

describe.each(Object.entries(CODES))('%s', (name, code) => {
  test.each([
    ['as it is', grpcError(code)],
    ['behind the SDK’s own', new ServiceError('Failed to start Workflow', { cause: grpcError(code) })],
  ])('%s', (_, error) => {
    const isUnavailable = UNAVAILABLE.includes(name);
    expect(isTemporalUnavailable(error)).toBe(isUnavailable);
    expect(describeError(error).status).toBe(isUnavailable ? 503 : 500);
  });
});

test('a namespace that does not exist is 503', () => {
  for (const error of [
    new NamespaceNotFoundError('elsewhere'),
    grpcError(5, 'Namespace elsewhere is not found.'),
    new ServiceError('Failed', { cause: grpcError(5, 'Namespace elsewhere is not found.') }),
  ])
    expect(describeError(error)).toMatchObject({ status: 503 });
});

test('a call that was refused for the sake of a search attribute is told from every other', () => {
  const refused = [
    'Namespace default has no mapping defined for search attribute MooringSled',
    'search attribute MooringSled is not defined',
    'BadSearchAttributes: something',
    'invalid value for search attribute MooringSled of type Int: x',
  ];
  for (const details of refused) {
    expect(refusesSearchAttributes(new ServiceError('Failed', { cause: grpcError(3, details) })), details).toBe(true);
    expect(refusesSearchAttributes(grpcError(14, details))).toBe(false);
  }
  expect(refusesSearchAttributes(grpcError(3, 'WorkflowId is not set on request.'))).toBe(false);
});
