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

const TRANSIENT_CODES = new Set(['40001', '40P01']);

/**
 * Runs a transaction again when PostgreSQL broke it off for the sake of another one (deadlock, serialization), up to
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

/** SQLSTATE classes of a server that can't serve now. 53: out of resources; 57: shutting down or starting; 08: the connection broke. */
const UNAVAILABLE_CLASSES = /^(53|57|08)/;
const CONNECTION_CODES = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT']);
/** The last one: the rollback of a transaction whose connection broke, which hides what broke it. */
const DRIVER_MESSAGES = /timeout exceeded when trying to connect|Connection terminated|is not queryable/;

/** Whether an error says that PostgreSQL can't be reached, or can't serve, at the moment: the same call may succeed later. */
export function isDatabaseUnavailable(error: unknown): boolean {
  const code = databaseError(error)?.code;
  if (code !== undefined && UNAVAILABLE_CLASSES.test(code)) return true;
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    const socketCode = (cause as { code?: unknown }).code;
    if (typeof socketCode === 'string' && CONNECTION_CODES.has(socketCode)) return true;
    if (DRIVER_MESSAGES.test(cause.message)) return true;
  }
  return false;
}
