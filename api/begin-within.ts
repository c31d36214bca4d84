import type { Client } from '@temporalio/client';
import { CALL_TIMEOUT_MS } from '../temporal/connection.ts';

/** What a call to Temporal may take in any case, in milliseconds: one that is cut off may have begun all the same. */
const LEAST_MS = 5_000;

/**
 * Makes the calls to Temporal by which a request begins what it then waits for. Who may wait `leftMs` milliseconds more gets no answer
 * much later, whether the server answers or has frozen. Throws what `call` throws, DEADLINE_EXCEEDED past the limit.
 */
export function beginWithin<Result>(client: Client, leftMs: number, call: () => Promise<Result>): Promise<Result> {
  return client.withDeadline(Date.now() + Math.min(CALL_TIMEOUT_MS, Math.max(LEAST_MS, leftMs)), call);
}
