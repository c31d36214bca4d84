import { createHash } from 'node:crypto';
import type { Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sql } from 'drizzle-orm';
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import pg from 'pg';
import { ADVISORY_LOCKS } from './advisory-locks.ts';
import * as schema from './schema.ts';

export type Database = NodePgDatabase<typeof schema>;
/** A database or an open transaction on it. */
export type Queryable = Pick<Database, 'select' | 'insert' | 'update' | 'delete' | 'execute'>;

export interface OpenDatabase {
  readonly db: Database;
  readonly pool: pg.Pool;
  /** Waits for running queries, then closes every connection. */
  close(): Promise<void>;
}

const MIGRATIONS_FOLDER = join(dirname(fileURLToPath(import.meta.url)), 'migrations');
/** How long one statement may take, in milliseconds: shorter than any activity's time-out, so that a lock can't outlive it. */
const STATEMENT_TIMEOUT_MS = 8_000;

/**
 * Opens a pool of at most `maxConnections` (default 10) connections. Connections are made on first use: a database that
 * is away fails the query, not this call.
 */
export function openDatabase(
  url: string,
  options: { maxConnections?: number; applicationName?: string } = {},
): OpenDatabase {
  const pool = new pg.Pool({
    ...connectionOptions(url, options.applicationName ?? 'mooring'),
    max: options.maxConnections ?? 10,
    idle_in_transaction_session_timeout: 15_000,
  });
  if (process.env.MOORING_PREPARED_STATEMENTS !== 'off') pool.on('connect', prepareStatements);
  // An idle connection that breaks (a restart of PostgreSQL) is replaced by the pool; without a listener it would end the process.
  pool.on('error', () => {});
  // The same for one in use between two statements of a transaction: its next statement fails.
  pool.on('connect', (client) => client.on('error', () => {}));
  return { db: drizzle(pool, { schema }), pool, close: () => pool.end() };
}

/**
 * One connection over a socket of the caller's, not connected yet: the caller connects it, ends it, and destroys the socket
 * where the other side may be gone. A connection that breaks ends (`end`), and is no error of the process.
 */
export function singleConnection(url: string, applicationName: string, socket: Socket): pg.Client {
  const client = new pg.Client({ ...connectionOptions(url, applicationName), stream: () => socket });
  client.on('error', () => {});
  return client;
}

function connectionOptions(url: string, applicationName: string) {
  return {
    connectionString: url,
    application_name: applicationName,
    connectionTimeoutMillis: 5_000,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    keepAlive: true,
  } satisfies pg.ClientConfig;
}

/**
 * Gives every statement with parameters a name of its own, so that each connection has PostgreSQL parse and plan it once:
 * half of what PostgreSQL did for a start was that (docs/performance.md). The texts are few, since values are never
 * written into them. `MOORING_PREPARED_STATEMENTS=off` is for a pooler that doesn't know prepared statements.
 */
function prepareStatements(client: pg.PoolClient): void {
  const send = client.query.bind(client) as (config: unknown, ...rest: unknown[]) => unknown;
  const query = (config: unknown, ...rest: unknown[]) => send(named(config, rest[0]), ...rest);
  client.query = query as typeof client.query;
}

const statementNames = new Map<string, string>();

function named(config: unknown, values: unknown): unknown {
  if (typeof config !== 'object' || config === null || !Array.isArray(values) || values.length === 0) return config;
  const { text, name } = config as { text?: unknown; name?: unknown };
  if (typeof text !== 'string' || name !== undefined) return config;
  let known = statementNames.get(text);
  if (known === undefined) {
    known = createHash('sha1').update(text).digest('base64url');
    statementNames.set(text, known);
  }
  return { ...config, name: known };
}

/** Waits for an answer of the database, to a query for nothing. Throws what keeps it from answering. */
export async function pingDatabase(db: Queryable): Promise<void> {
  await db.execute(sql`SELECT 1`);
}

/** Whether a PostgreSQL at `url` takes connections and answers; the connection is waited for two seconds. */
export async function acceptsConnections(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 2_000 });
  client.on('error', () => {});
  try {
    await client.connect();
    await client.query('SELECT 1');
    return true;
  } catch {
    return false;
  } finally {
    await client.end().catch(() => {});
  }
}

/** Brings the database at `url` to the newest schema; several processes may do so at once. Throws PostgreSQL's errors. */
export async function migrateDatabase(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 10_000 });
  // The statement that meets it fails; without a listener the process would end.
  client.on('error', () => {});
  await client.connect();
  try {
    const db = drizzle(client);
    await db.execute(sql`SELECT pg_advisory_lock(${ADVISORY_LOCKS.migration})`);
    await migrate(db, { migrationsFolder: MIGRATIONS_FOLDER });
  } finally {
    await client.end();
  }
}
