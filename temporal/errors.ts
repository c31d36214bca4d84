/** The gRPC codes of a server that can't be reached or did not answer in time: UNAVAILABLE, DEADLINE_EXCEEDED. */
const UNAVAILABLE_CODES: ReadonlySet<unknown> = new Set([14, 4]);

/** Whether an error says that the Temporal server does not answer at the moment: the same call may succeed later. */
export function isTemporalUnavailable(error: unknown): boolean {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    if (UNAVAILABLE_CODES.has((cause as { code?: unknown }).code)) return true;
  }
  return false;
}
