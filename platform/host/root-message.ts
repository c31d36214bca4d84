/** What lies behind an error, in its own words on one line: of a query PostgreSQL's or the driver's, never the statement. */
export function rootMessage(error: unknown): string {
  let last: unknown = error;
  while (last instanceof Error && last.cause instanceof Error) last = last.cause;
  // Node tells each address that it tried in `errors`, and nothing in the message.
  if (last instanceof AggregateError && last.message === '') last = last.errors[0];
  return (last instanceof Error ? last.message : String(last)).split('\n')[0] ?? '';
}
