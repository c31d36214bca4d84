/** The headers by which calls and sagas are brought together. */
import type { FastifyReply, FastifyRequest } from 'fastify';
import { Refusal } from '../model/refusal.ts';
import { isUuid } from '../wire/operator-api/names.ts';

/** How long a call may wait, in milliseconds: `Prefer: wait=SECONDS` (RFC 7240) asks for less than the limit. */
export function waitMs(request: FastifyRequest, limitMs: number): number {
  const prefer = [request.headers.prefer ?? []].flat().join(',');
  const asked = /(?:^|[,;\s])wait\s*=\s*"?(\d+)"?/i.exec(prefer)?.[1];
  return asked === undefined ? limitMs : Math.min(limitMs, Number(asked) * 1000);
}

/**
 * The key that a client gave its call (`Idempotency-Key`, a UUID), so that the same call again is the same operation.
 * Throws a {@link Refusal} for one that is no UUID. Source: draft-ietf-httpapi-idempotency-key-header.
 */
export function idempotencyKey(request: FastifyRequest): string | undefined {
  const given = request.headers['idempotency-key'];
  if (given === undefined) return undefined;
  // The draft has it as a quoted string; most clients leave the quotes out.
  const key = String(given).replace(/^"(.*)"$/, '$1');
  if (!isUuid(key)) throw Refusal.invalid('Idempotency-Key: must be a UUID, a new one for each new call');
  return key.toLowerCase();
}

/** Points the caller (`Location`) and the audit log to the operation that a call began or joined. */
export function linkOperation(reply: FastifyReply, operationId: string): void {
  reply.header('location', `/v1/operations/${operationId}`);
  reply.request.audit?.began(operationId);
}
