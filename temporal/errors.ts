/** What an error of a call to Temporal means to who made it: the one place that reads gRPC's codes. */
import { NamespaceNotFoundError } from '@temporalio/common';

/**
 * The codes of a server that does not serve at the moment: CANCELLED (the server may end a call at our own deadline before we
 * do), DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE, UNAUTHENTICATED. A credential that is refused is
 * the installation's fault, to be mended beside it: never that of who asked. Source: grpc/doc/statuscodes.md.
 */
const UNAVAILABLE_CODES: ReadonlySet<unknown> = new Set([1, 4, 7, 8, 14, 16]);
const INVALID_ARGUMENT = 3;
const NOT_FOUND = 5;

/** Whether an error says that the Temporal server does not serve us at the moment: the same call may succeed later. */
export function isTemporalUnavailable(error: unknown): boolean {
  return causesOf(error).some(({ code }) => UNAVAILABLE_CODES.has(code)) || isNamespaceMissing(error);
}

/** Whether a call was refused because the server does not know a search attribute that it names, or knows it otherwise. */
export function refusesSearchAttributes(error: unknown): boolean {
  return causesOf(error).some(({ code, text }) => code === INVALID_ARGUMENT && /search ?attribute/i.test(text));
}

/** Whether a call failed because the server doesn't know its namespace. */
export function isNamespaceMissing(error: unknown): boolean {
  return (
    error instanceof NamespaceNotFoundError ||
    causesOf(error).some(({ code, text }) => code === NOT_FOUND && /namespace .*(not found|does not exist)/i.test(text))
  );
}

/** Whether a call failed because there is nothing of the name that it asked for. */
export function isNotFound(error: unknown): boolean {
  return causesOf(error).some(({ code }) => code === NOT_FOUND);
}

/** An error's own words, on one line. */
export function oneLine(error: unknown): string {
  const [innermost] = causesOf(error).slice(-1);
  return (innermost?.text ?? String(error)).split('\n')[0] ?? '';
}

/** An error and what caused it, outermost first. */
function causesOf(error: unknown): { readonly code: unknown; readonly text: string }[] {
  const causes: { readonly code: unknown; readonly text: string }[] = [];
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    const { code, details } = cause as { code?: unknown; details?: unknown };
    causes.push({ code, text: typeof details === 'string' && details !== '' ? details : cause.message });
  }
  return causes;
}
