/** What an error means to the one who asked: its status, its code and its message. */
import { hasZodFastifySchemaValidationErrors } from 'fastify-type-provider-zod';
import { CannotAsk } from '../activities/sled-client.ts';
import { databaseTrouble } from '../db/errors.ts';
import { describeIdentityRefusal, type IdentityRefusal } from '../model/identity.ts';
import { Refusal } from '../model/refusal.ts';
import { HTTP_ERROR_CODES, HttpError, type WriteErrorBody } from '../platform/http/http-errors.ts';
import { isTemporalUnavailable } from '../temporal/errors.ts';
import { errorResponse } from '../wire/operator-api/error-response.ts';
import { FOREIGN_AGENT } from '../wire/sled-protocol.ts';
import { OperationFailed } from './operations.ts';

/** The error responses that every endpoint declares. */
export const errors = { '4xx': errorResponse, '5xx': errorResponse };

/** Thrown for the sake of who asks: 403 to a sled that may not do this, 401 to whoever has no good certificate. */
export class IdentityRefused extends Error {
  override readonly name = 'IdentityRefused';
  readonly refusal: IdentityRefusal;

  constructor(refusal: IdentityRefusal) {
    super(describeIdentityRefusal(refusal));
    this.refusal = refusal;
  }
}

const IDENTITY_CODES: Readonly<Record<IdentityRefusal, { status: 401 | 403; code: string }>> = {
  no_certificate: { status: 401, code: 'NO_CERTIFICATE' },
  other_authority: { status: 401, code: 'UNKNOWN_AUTHORITY' },
  expired: { status: 401, code: 'CERTIFICATE_EXPIRED' },
  revoked: { status: 401, code: 'CERTIFICATE_REVOKED' },
  wrong_identity: { status: 403, code: 'NOT_A_SLED' },
  expunged: { status: 403, code: 'SLED_EXPUNGED' },
  foreign_sled: { status: 403, code: 'FOREIGN_SLED' },
  foreign_agent: { status: 403, code: FOREIGN_AGENT },
  foreign_vmm: { status: 403, code: 'FOREIGN_VMM' },
};

/** An error as its caller gets it. */
export interface DescribedError {
  /** The HTTP status. */
  readonly status: number;
  readonly code: string;
  readonly message: string;
}

/** The one place that turns an error into a status and a message. */
export function describeError(error: unknown): DescribedError {
  if (error instanceof Refusal) return { status: error.status, code: error.code, message: error.message };
  if (error instanceof IdentityRefused) return { ...IDENTITY_CODES[error.refusal], message: error.message };
  if (error instanceof OperationFailed) {
    return { status: error.body.status, code: error.body.error_code, message: error.body.message };
  }
  if (hasZodFastifySchemaValidationErrors(error)) {
    const details = error.validation.map(
      (issue) => `${issue.instancePath.slice(1).replaceAll('/', '.') || error.validationContext}: ${issue.message}`,
    );
    return { status: 400, code: 'InvalidRequest', message: details.join('; ') };
  }
  const { statusCode } = error as { statusCode?: unknown };
  if (typeof statusCode === 'number' && (error instanceof HttpError || (statusCode >= 400 && statusCode < 500))) {
    return {
      status: statusCode,
      code: HTTP_ERROR_CODES[statusCode] ?? 'InvalidRequest',
      message: error instanceof Error ? error.message : String(error),
    };
  }
  if (error instanceof CannotAsk) return { status: 503, code: 'ServiceUnavailable', message: error.message };
  const trouble = troubleOf(error);
  if (trouble !== null) return { status: 503, code: 'ServiceUnavailable', message: `${trouble}: try again` };
  return { status: 500, code: 'Internal', message: 'an internal error; the request_id finds it in the log' };
}

/** Which of the services that the API needs does not serve at the moment, and how; `null` for any other error. */
function troubleOf(error: unknown): string | null {
  const database = databaseTrouble(error);
  if (database !== null) return `PostgreSQL ${database}`;
  return isTemporalUnavailable(error) ? 'the Temporal server does not serve us at the moment' : null;
}

/** The body of the answer to a request that HTTP itself refuses. */
export const httpErrorBody: WriteErrorBody = (error, requestId) => errorAnswer(describeError(error), requestId);

/** The body of the answer to the request `requestId`. */
export function errorAnswer({ code, message }: DescribedError, requestId: string) {
  return { error_code: code, message, request_id: requestId };
}
