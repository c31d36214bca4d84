/** The headers by which calls and sagas are brought together. */
import type { FastifyReply, FastifyRequest } from 'fastify';

/** How long a call may wait, in milliseconds: `Prefer: wait=SECONDS` (RFC 7240) asks for less than the limit. */
export function waitMs(request: FastifyRequest, limitMs: number): number {
  const prefer = [request.headers.prefer ?? []].flat().join(',');
  const asked = /(?:^|[,;\s])wait\s*=\s*"?(\d+)"?/i.exec(prefer)?.[1];
  return asked === undefined ? limitMs : Math.min(limitMs, Number(asked) * 1000);
}

/** Points the caller (`Location`) and the audit log to the operation that a call began or joined. */
export function linkOperation(reply: FastifyReply, operationId: string): void {
  reply.header('location', `/v1/operations/${operationId}`);
  reply.request.audit?.began(operationId);
}
