/**
 * The schema's version: brings it up to date, or checks it. A migration never keeps the readers of the running version
 * waiting: each is one transaction that gives up within a second or two where it would have to wait for a lock, and is tried
 * again. Whoever migrates holds a lock of that transaction, not of a session, so it holds behind a pooler too.
 */
import { dirname, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type MigrationMeta, readMigrationFiles } from 'drizzle-orm/migrator';
import { z } from 'zod';
import { rootMessage } from '../platform/host/root-message.ts';
import { ADVISORY_LOCKS } from './advisory-locks.ts';
import { refusesSettings, TOO_LATE_TRIES, wasTooLate } from './connect.ts';
import { DatabaseClient, setSinceOpen } from './database-client.ts';
import { databaseError, databaseTrouble } from './errors.ts';
import { unreachable } from './unreachable.ts';

const MIGRATIONS_FOLDER = join(dirname(fileURLToPath(import.meta.url)), 'migrations');
/** How long a migration waits for one lock before it lets everybody else go first, in milliseconds. */
const LOCK_TIMEOUT_MS = 1_500;
/** How long until it is tried again, in milliseconds: those that queued behind it are done by then. */
const AGAIN_MS = 1_000;
/** How often it says that it waits, in milliseconds. */
const SAY_EVERY_MS = 10_000;
/** How long the whole may take by default, in milliseconds. */
export const MIGRATION_LIMIT_MS = 300_000;
/** How long an answer is waited for to what is no migration itself, in milliseconds. */
const QUICK_MS = 10_000;

export interface MigrationOptions {
  /** How long the whole may take, in milliseconds; default 300000. */
  readonly limitMs?: number;
  /** Called with what is done, and what it waits for, for people. */
  readonly onProgress?: (message: string) => void;
  /** What names the URL, for messages; default `DATABASE_URL`. */
  readonly variable?: string;
  /** Where the migrations are; this build's by default. For tests. */
  readonly folder?: string;
}

/** What the schema's version is to this build. */
export type SchemaState =
  | { readonly state: 'current' }
  /** The names of the migrations that are missing, the oldest first. */
  | { readonly state: 'behind'; readonly missing: readonly string[] }
  /** A later build has added `unknown` migrations. */
  | { readonly state: 'ahead'; readonly unknown: number }
  /** It was made, but this connection finds no table of it: they are in these schemas. */
  | { readonly state: 'elsewhere'; readonly schemas: readonly string[] }
  /** A migration of this name was another one: no build of this line has made the database. */
  | { readonly state: 'foreign'; readonly migration: string };

interface Migration extends MigrationMeta {
  readonly name: string;
}

const journal = z.object({ entries: z.array(z.object({ tag: z.string(), when: z.number() })) });
const applied = z.object({ hash: z.string(), created_at: z.coerce.number() });
type Applied = z.infer<typeof applied>;

/** The migrations of this build, or of `folder`, the oldest first. */
async function readMigrations(folder: string): Promise<Migration[]> {
  const { readFile } = await import('node:fs/promises');
  const { entries } = journal.parse(JSON.parse(await readFile(join(folder, 'meta', '_journal.json'), 'utf8')));
  const names = new Map(entries.map(({ tag, when }) => [when, tag]));
  return readMigrationFiles({ migrationsFolder: folder })
    .map((migration) => ({ ...migration, name: names.get(migration.folderMillis) ?? String(migration.folderMillis) }))
    .sort((a, b) => a.folderMillis - b.folderMillis);
}

/** What was applied, the oldest first; nothing on an empty database. Changes nothing, and needs no right but to read. */
async function readApplied(client: DatabaseClient): Promise<Applied[]> {
  const { rows: found } = await client.query<{ there: boolean }>(
    `SELECT EXISTS (SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
      WHERE nspname = 'drizzle' AND relname = '__drizzle_migrations') AS there`,
  );
  if (!found[0]?.there) return [];
  const { rows } = await client.query('SELECT hash, created_at FROM drizzle.__drizzle_migrations ORDER BY created_at');
  return z.array(applied).parse(rows);
}

/** What the migrations of a build are to those that were applied. Pure. */
export function compareSchema(
  ours: readonly { readonly name: string; readonly folderMillis: number; readonly hash: string }[],
  done: readonly { readonly hash: string; readonly created_at: number }[],
): SchemaState {
  const hashes = new Map(done.map((row) => [row.created_at, row.hash]));
  const other = ours.find(({ folderMillis, hash }) => (hashes.get(folderMillis) ?? hash) !== hash);
  if (other !== undefined) return { state: 'foreign', migration: other.name };
  const missing = ours.filter(({ folderMillis }) => !hashes.has(folderMillis));
  if (missing.length > 0) return { state: 'behind', missing: missing.map(({ name }) => name) };
  const unknown = done.length - ours.length;
  return unknown > 0 ? { state: 'ahead', unknown } : { state: 'current' };
}

/**
 * What the schema that a connection finds its tables in is to a build. What was applied is on record once for a database: a
 * `search_path` that leads elsewhere has the record without the tables.
 */
async function readState(client: DatabaseClient, migrations: readonly Migration[]): Promise<SchemaState> {
  const done = await readApplied(client);
  const state = compareSchema(migrations, done);
  if (done.length === 0 || state.state === 'foreign') return state;
  const { rows } = await client.query<{ found: boolean; schemas: string[] }>(
    `SELECT to_regclass('${FIRST_TABLE}') IS NOT NULL AS found, ARRAY(SELECT nspname::text FROM pg_class
      JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relname = '${FIRST_TABLE}' ORDER BY nspname) AS schemas`,
  );
  return rows[0]?.found === false ? { state: 'elsewhere', schemas: rows[0].schemas } : state;
}

/** A table that every migrated database has. */
const FIRST_TABLE = 'installation';

/**
 * Brings the database at `url` to the newest schema; several processes may do so at once. Where all is up to date nothing is
 * written, so that a role that may only read and write rows is enough. Returns the names of the migrations that it applied.
 * Throws, with what to do, when PostgreSQL can't be reached, when the time is up, and for a database of another line.
 */
export async function migrateDatabase(url: string, options: MigrationOptions = {}): Promise<string[]> {
  const { limitMs = MIGRATION_LIMIT_MS, onProgress: say = () => {} } = options;
  const migrations = await readMigrations(options.folder ?? MIGRATIONS_FOLDER);
  const end = performance.now() + limitMs;
  const done: string[] = [];
  let saidAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    const attempt = await attemptNext(url, migrations, end, options.variable);
    if (attempt.outcome === 'nothing-left') {
      if (attempt.said !== null) say(attempt.said);
      return done;
    }
    if (attempt.outcome === 'applied') {
      done.push(attempt.name);
      say(`migration ${attempt.name} is applied`);
      continue;
    }
    if (performance.now() + AGAIN_MS > end)
      throw new Error(
        `the migration of the database was given up after ${Math.round(limitMs / 1_000)} s: ${attempt.why}. It can be run again at any time and goes on where it is; where it waits for a lock, end what holds that first (a dump, a long transaction: pg_stat_activity shows them)`,
      );
    if (performance.now() > saidAt + SAY_EVERY_MS) {
      saidAt = performance.now();
      say(`${attempt.why}; tried again, for ${Math.round((end - saidAt) / 1_000)} s at most`);
    }
    await pause(AGAIN_MS);
  }
}

/** What one try to apply the next migration came to. */
type Attempt =
  | { readonly outcome: 'nothing-left'; readonly said: string | null }
  | { readonly outcome: 'applied'; readonly name: string }
  | { readonly outcome: 'waits'; readonly why: string };

/** Looks what is missing, and applies the first of it, until `end` at most (by `performance.now`). */
async function attemptNext(
  url: string,
  migrations: readonly Migration[],
  end: number,
  variable: string | undefined,
): Promise<Attempt> {
  return withConnection(url, variable, async (client): Promise<Attempt> => {
    try {
      const state = await readState(client, migrations);
      if (state.state === 'foreign' || state.state === 'elsewhere') throw new Error(describeSchema(state));
      const next = state.state === 'behind' ? migrations.find(({ name }) => name === state.missing[0]) : undefined;
      if (next === undefined)
        return { outcome: 'nothing-left', said: state.state === 'ahead' ? describeSchema(state) : null };
      return await apply(client, next, Math.max(LOCK_TIMEOUT_MS, Math.floor(end - performance.now())));
    } catch (error) {
      // A connection that broke or fell silent is replaced; whether its last word was done, the next look tells.
      if (databaseError(error) === null && databaseTrouble(error) !== null)
        return { outcome: 'waits', why: `PostgreSQL ${databaseTrouble(error)} (${rootMessage(error)})` };
      throw error;
    }
  });
}

/** PostgreSQL's code of a lock that did not come in time. */
const LOCK_NOT_AVAILABLE = '55P03';

/** Applies one migration in one transaction. Throws what PostgreSQL and the driver report, but for locks that don't come. */
async function apply(client: DatabaseClient, migration: Migration, leftMs: number): Promise<Attempt> {
  const { name } = migration;
  const limits = {
    lock_timeout: LOCK_TIMEOUT_MS,
    statement_timeout: leftMs,
    idle_in_transaction_session_timeout: leftMs,
  };
  await client.query(
    [
      'BEGIN ISOLATION LEVEL READ COMMITTED',
      ...Object.entries(limits).map(([key, value]) => `SET LOCAL ${key} = ${value}`),
      // Again, for behind a pooler this is another session than the one that was opened.
      setSinceOpen(true),
    ].join('; '),
  );
  let why = 'another process migrates the database';
  try {
    await client.query(`SELECT pg_advisory_xact_lock(${ADVISORY_LOCKS.migration})`);
    why = `migration ${name} waits for a lock that somebody else holds, and lets readers go first`;
    const before = await readApplied(client);
    if (before.some((row) => row.created_at === migration.folderMillis)) {
      await client.query('ROLLBACK');
      return { outcome: 'waits', why: 'another process has migrated the database' };
    }
    if (before.length === 0) await client.query(MAKE_RECORD);
    client.answerLimitMs = leftMs + QUICK_MS;
    for (const statement of migration.sql) await client.query(statement);
    client.answerLimitMs = QUICK_MS;
    await client.query('INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ($1, $2)', [
      migration.hash,
      migration.folderMillis,
    ]);
    await client.query('COMMIT');
    return { outcome: 'applied', name };
  } catch (error) {
    const refused = databaseError(error);
    if (refused === null) throw error;
    await client.query('ROLLBACK').catch(() => {});
    if (refused.code === LOCK_NOT_AVAILABLE) return { outcome: 'waits', why };
    throw new Error(`migration ${name} failed, and nothing of it was done: ${rootMessage(error)}`, { cause: error });
  }
}

/** Where drizzle keeps what was applied; its tools read it. */
const MAKE_RECORD = `CREATE SCHEMA IF NOT EXISTS drizzle; CREATE TABLE IF NOT EXISTS drizzle.__drizzle_migrations (
  id SERIAL PRIMARY KEY, hash text NOT NULL, created_at bigint)`;

/** What is wrong with a schema, and what to do, for people. Call it for any state but `current`. */
export function describeSchema(state: SchemaState): string {
  switch (state.state) {
    case 'current':
      return 'the schema is up to date';
    case 'behind':
      return `the schema is older than this build (${state.missing.join(', ')} ${state.missing.length === 1 ? 'is' : 'are'} missing): run "mooring migrate" first`;
    case 'ahead':
      return `the schema is newer than this build, by ${state.unknown} migration${state.unknown === 1 ? '' : 's'}: only the build just before still works on it; replace this process with the newer build`;
    case 'elsewhere':
      return `the database was migrated, but this connection finds no table (${
        state.schemas.length === 0
          ? 'there is none: it was emptied by hand'
          : `they are in the schema "${state.schemas.join('", "')}"`
      }): one database holds one installation. Name that schema in DATABASE_URL (?options=-c%20search_path%3D${
        state.schemas[0] ?? 'NAME'
      }), with USAGE on it for this role, or another database`;
    case 'foreign':
      return `the schema was not made by a build of this line (its ${state.migration} is another one): name another database, or make this one anew`;
  }
}

/** What the schema of the database at `url` is to this build; changes nothing. Throws when PostgreSQL can't be reached. */
export async function readSchemaState(url: string, folder = MIGRATIONS_FOLDER): Promise<SchemaState> {
  const migrations = await readMigrations(folder);
  return withConnection(url, undefined, (client) => readState(client, migrations)).catch((error: unknown) => {
    if (databaseError(error)?.code !== '42501') throw error;
    throw new Error(
      `the schema's version can't be read (${rootMessage(error)}): GRANT USAGE ON SCHEMA drizzle, and SELECT on its tables, to the role of DATABASE_URL`,
      { cause: error },
    );
  });
}

/**
 * Checks that this build can work on the schema at `url`. Throws, with what to do, for one that is too old or of another line;
 * a newer one is said through `warn`: the build before still works on it, while processes are replaced one by one.
 */
export async function requireCurrentSchema(url: string, warn: (message: string) => void = () => {}): Promise<void> {
  const state = await readSchemaState(url);
  if (state.state === 'ahead') warn(describeSchema(state));
  else if (state.state !== 'current') throw new Error(describeSchema(state));
}

/** Works over one connection of its own. Throws, with where that was, when it can't be opened. */
async function withConnection<Result>(
  url: string,
  variable: string | undefined,
  work: (client: DatabaseClient) => Promise<Result>,
): Promise<Result> {
  const client = await connectedByAnyMeans(url).catch((error: unknown) => {
    throw unreachable(url, error, variable);
  });
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => {});
  }
}

async function connectedByAnyMeans(url: string): Promise<DatabaseClient> {
  for (let tries = 1; ; tries++) {
    try {
      return await connected(url, true);
    } catch (error) {
      if (refusesSettings(error)) return connected(url, false);
      if (!wasTooLate(error) || tries > TOO_LATE_TRIES) throw error;
    }
  }
}

async function connected(url: string, takesSettings: boolean): Promise<DatabaseClient> {
  const client = new DatabaseClient({
    url,
    applicationName: 'mooring-migrate',
    peer: { takesSettings, keepsStatements: false },
    answerLimitMs: QUICK_MS,
  });
  try {
    await client.connect();
    return client;
  } catch (error) {
    client.cut();
    throw error;
  }
}
