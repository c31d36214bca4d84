import { rootMessage } from '../platform/host/root-message.ts';
import { isPostgresUrl } from '../platform/settings.ts';
import { databaseError, databaseTrouble } from './errors.ts';

/**
 * An error that says which PostgreSQL can't be worked with, and where its name comes from; never with its password. `why`: what
 * is said of it, by default what the error tells.
 */
export function unreachable(url: string, error: unknown, variable = 'DATABASE_URL', why?: string): Error {
  const trouble = databaseError(error) === null ? null : databaseTrouble(error);
  return new Error(
    `PostgreSQL at ${placeOf(url)} (${variable}) ${why ?? trouble ?? (databaseError(error) === null ? "can't be reached" : "can't be used")}: ${rootMessage(error)}`,
    {
      cause: error,
    },
  );
}

/** Where a connection URL leads, without its secrets. */
function placeOf(url: string): string {
  try {
    const { host, pathname } = new URL(url);
    return `${decodeURIComponent(host) || 'this machine'}${pathname}`;
  } catch {
    return 'the place it names';
  }
}

/**
 * Checks a connection URL before anything is tried with it. Throws, with the name of the variable that holds it and never its
 * value, for what leads nowhere. Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
 */
export function requireDatabaseUrl(url: string, variable = 'DATABASE_URL'): string {
  if (isPostgresUrl(url)) return url;
  throw new Error(
    `${variable}: this is not the URL of a PostgreSQL; it begins with postgres://, for example postgres://user@host/mooring`,
  );
}
