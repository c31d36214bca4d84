import { databaseError, isOfDriver } from '../db/errors.ts';
import { unreachable } from '../db/unreachable.ts';
import { explainUnreachable, type TemporalSettings } from '../temporal/connection.ts';
import { isTemporalUnavailable } from '../temporal/errors.ts';

/** What a command works on. */
export interface WorkedOn {
  readonly databaseUrl?: string | undefined;
  readonly temporal?: TemporalSettings | undefined;
}

/** No such table, schema or column: another build's schema, or none. */
const NO_SCHEMA = /^(42P01|3F000|42703)$/;

/**
 * An error of a command in words for people: which PostgreSQL or Temporal it is that does not serve, why, and what names it. One
 * that has such words already, and any other, is returned as it is.
 */
export function explainTrouble(error: unknown, { databaseUrl, temporal }: WorkedOn): unknown {
  if (databaseUrl !== undefined && isOfDriver(error)) {
    const code = databaseError(error)?.code;
    if (!NO_SCHEMA.test(code ?? '')) return unreachable(databaseUrl, error);
    const said = unreachable(databaseUrl, error, undefined, `has not the schema of this build (${code})`);
    return new Error(`${said.message}: run "mooring migrate" first`, { cause: error });
  }
  if (temporal !== undefined && isTemporalUnavailable(error)) return explainUnreachable(error, temporal);
  return error;
}
