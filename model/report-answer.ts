/** What the control plane's answer to a report means for the sled agent that sent it (section 7 of docs/design.md). */

/**
 * Statuses by which the control plane refuses a request, not the report: 401 while a certificate is about to be renewed or
 * the sled to join again, and those of HTTP itself, which what stands in between may have brought about.
 */
const TRY_AGAIN: ReadonlySet<number> = new Set([401, 405, 408, 411, 413, 414, 415, 417, 421, 425, 426, 429, 431]);

/** Whether a refusal with this status, which must carry the control plane's mark, is its last word on a report. */
export function isFinalRefusal(status: number): boolean {
  return status >= 400 && status < 500 && !TRY_AGAIN.has(status);
}
