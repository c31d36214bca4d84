import { DrizzleQueryError } from 'drizzle-orm';
import pg from 'pg';
import { Refusal } from '../model/refusal.ts';

/** PostgreSQL's error behind whatever wrapped it (drizzle wraps), or `null`. */
export function databaseError(error: unknown): pg.DatabaseError | null {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof pg.DatabaseError) return cause;
  }
  return null;
}

/** The name of the constraint that refused a write, or `null`. */
export function violatedConstraint(error: unknown): string | null {
  const cause = databaseError(error);
  return cause?.code?.startsWith('23') ? (cause.constraint ?? null) : null;
}

/**
 * Runs a write whose name the unique index `constraint` may find taken: throws a {@link Refusal} that says so, with what
 * kind of thing (`noun`) has which name. Any other error is thrown as it is.
 */
export async function refuseTakenName<T>(
  constraint: string,
  noun: string,
  name: string,
  write: () => Promise<T>,
): Promise<T> {
  try {
    return await write();
  } catch (error) {
    if (violatedConstraint(error) === constraint) throw Refusal.nameTaken(noun, name);
    throw error;
  }
}

/** Serialization, deadlock, and a prepared statement that a pooler has lost: the next try is without. */
const TRANSIENT_CODES = new Set(['40001', '40P01', '26000', '42P05']);

/**
 * Runs a transaction again when PostgreSQL broke it off for the sake of another one, or of what a pooler lost, up to
 * `attempts` times in all. Any other error is thrown at once.
 */
export async function retryOnConflict<T>(run: () => Promise<T>, attempts = 5): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run();
    } catch (error) {
      const code = databaseError(error)?.code;
      if (attempt >= attempts || code === undefined || !TRANSIENT_CODES.has(code)) throw error;
    }
  }
}

const raised = new WeakSet<object>();

/** Marks an error of the driver's: the connection broke, was never made, or gave no answer in time. Returns it. */
export function raisedByDriver<Raised>(error: Raised): Raised {
  if (typeof error === 'object' && error !== null) raised.add(error);
  return error;
}

/**
 * What each SQLSTATE, or class of them, says of a server that can't serve now, for people; the first that fits counts.
 * Source: appendix A of PostgreSQL's manual.
 */
const TROUBLES: readonly (readonly [RegExp, string])[] = [
  [/^25006$/, 'is read-only at the moment, as a standby is, or a server whose disk is full'],
  [/^53100$/, 'has no room left on its disk'],
  [/^53200$/, 'has no memory left'],
  [/^53300$/, 'takes no more connections'],
  [/^53400$/, 'has ended a statement that went beyond a limit of its own, such as temp_file_limit'],
  [/^53/, 'is out of resources'],
  [/^57P03$/, 'is starting, or about to stop'],
  [/^57014$/, 'took too long to answer'],
  [/^55P03$/, 'is locked by somebody else'],
  [/^57/, 'is stopping'],
  [/^28/, 'does not let this process in'],
  [/^3D000$/, 'has no database of the name that DATABASE_URL gives'],
  [/^08/, 'has lost the connection'],
  [/^25P0[34]$/, 'has ended a transaction that took too long'],
  [/^(40001|40P01)$/, 'has given way to other requests'],
  [/^58/, 'has a fault of its own'],
  // What a pooler makes of statements that were prepared on another connection: it is not done again.
  [/^(26000|42P05)$/, 'is behind a pooler that has mixed up its connections'],
];

/** What the driver and its pool say of connections that can't be used. The last: the rollback over one that broke hides what broke it. */
const DRIVER_MESSAGES =
  /timeout exceeded when trying to connect|Connection terminated|is not queryable|Cannot use a pool after calling end/;

/**
 * What keeps PostgreSQL from serving at the moment, for people ("has no room left on its disk (53100)"); `null` for any other
 * error. The same call may succeed later.
 */
export function databaseTrouble(error: unknown): string | null {
  const code = databaseError(error)?.code;
  if (code !== undefined) {
    const found = TROUBLES.find(([codes]) => codes.test(code));
    return found === undefined ? null : `${found[1]} (${code})`;
  }
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause)
    if (raised.has(cause) || DRIVER_MESSAGES.test(cause.message)) return 'does not answer';
  return null;
}

/** Whether an error says that PostgreSQL can't be reached, or can't serve, at the moment: the same call may succeed later. */
export function isDatabaseUnavailable(error: unknown): boolean {
  return databaseTrouble(error) !== null;
}

/** Whether an error is what PostgreSQL, the driver or drizzle threw, without a word of ours. */
export function isOfDriver(error: unknown): boolean {
  if (error instanceof DrizzleQueryError || databaseError(error) === error) return true;
  return error instanceof Error && error.cause === undefined && databaseTrouble(error) !== null;
}
