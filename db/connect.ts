import type { Socket } from 'node:net';
import { sql } from 'drizzle-orm';
import { drizzle, type NodePgDatabase } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import { rootMessage } from '../platform/host/root-message.ts';
import { within } from '../platform/host/with-limit.ts';
import { setting } from '../platform/settings.ts';
import { DatabaseClient, type DatabasePeer, driverOptions } from './database-client.ts';
import { databaseError, databaseTrouble, raisedByDriver } from './errors.ts';
import * as schema from './schema.ts';

export type Database = NodePgDatabase<typeof schema>;
/** A database or an open transaction on it. */
export type Queryable = Pick<Database, 'select' | 'insert' | 'update' | 'delete' | 'execute'>;

export interface OpenDatabase {
  readonly db: Database;
  readonly pool: pg.Pool;
  /** What the server, or a pooler before it, has shown that it doesn't do. */
  readonly peer: Readonly<Pick<DatabasePeer, 'takesSettings' | 'keepsStatements'>>;
  /** Waits for running queries, for ten seconds at most, then closes every connection. */
  close(): Promise<void>;
}

/** How old a connection gets, in seconds: after a fail-over none stays for long with a server that leads no more. */
const MAX_LIFETIME_SECONDS = 600;
/** How long what runs may go on when the pool is closed, in milliseconds: longer than an answer is waited for. */
const CLOSE_LIMIT_MS = 10_000;

/** How the limits of a pool differ from the usual ones; for tests. */
interface PoolLimits {
  /** How long each answer is waited for, in milliseconds. */
  readonly answerLimitMs?: number;
  /** How long a connection may take to be opened, and a free one to come, in milliseconds. */
  readonly connectLimitMs?: number;
}

/**
 * Opens a pool of at most `maxConnections` (default 10) connections. Connections are made on first use: a database that
 * is away fails the query, not this call. No query waits longer than five seconds for a connection and nine for its answer;
 * a connection that gave none is cut, and with it all that are idle, since whatever swallowed one has them too.
 */
export function openDatabase(
  url: string,
  options: { maxConnections?: number; applicationName?: string } & PoolLimits = {},
): OpenDatabase {
  const { answerLimitMs, connectLimitMs, applicationName = 'mooring' } = options;
  const connections = new Set<DatabaseClient>();
  const idle = new Set<DatabaseClient>();
  const peer: DatabasePeer = {
    takesSettings: true,
    keepsStatements: setting('MOORING_PREPARED_STATEMENTS') !== 'off',
    onSilence: () => {
      for (const client of idle) client.cut();
    },
  };
  const client = {
    url,
    applicationName,
    peer,
    ...(answerLimitMs === undefined ? {} : { answerLimitMs }),
    ...(connectLimitMs === undefined ? {} : { connectLimitMs }),
  };
  const pool = new pg.Pool({
    ...driverOptions(client),
    max: options.maxConnections ?? 10,
    maxLifetimeSeconds: MAX_LIFETIME_SECONDS,
    Client: class extends DatabaseClient {
      constructor() {
        super(client);
      }
    },
  });
  takeByAnyMeans(pool, peer);
  // An idle connection that breaks (a restart of PostgreSQL) is replaced by the pool; without a listener it would end the process.
  pool.on('error', () => {});
  const ours = (lent: pg.PoolClient) => lent as unknown as DatabaseClient;
  pool.on('connect', (made) => connections.add(ours(made)));
  pool.on('acquire', (lent) => idle.delete(ours(lent)));
  pool.on('release', (_, returned) => {
    // One that ends is not taken back.
    if (ours(returned).unfit) void returned.end();
    else idle.add(ours(returned));
  });
  pool.on('remove', (gone) => {
    connections.delete(ours(gone));
    idle.delete(ours(gone));
  });
  return {
    db: drizzle(pool, { schema }),
    pool,
    peer,
    async close() {
      await within(CLOSE_LIMIT_MS, pool.end(), () => {});
      for (const client of connections) client.cut();
    },
  };
}

type Lent = (error: Error | undefined, client: pg.PoolClient | undefined, release: (error?: unknown) => void) => void;

/**
 * Has a pool ask again without settings where a pooler refuses them, lend no connection that was cut, and marks what keeps it from
 * connecting.
 */
function takeByAnyMeans(pool: pg.Pool, peer: DatabasePeer): void {
  const lend = pool.connect.bind(pool) as (lent: Lent) => void;
  const take = (lent: Lent, refusals = 0) =>
    lend((error, client, release) => {
      if (error !== undefined && refusesSettings(error) && refusals === 0) {
        peer.takesSettings = false;
        take(lent, refusals + 1);
        return;
      }
      if (error !== undefined && wasTooLate(error) && refusals < TOO_LATE_TRIES) {
        take(lent, refusals + 1);
        return;
      }
      // The pool learns of a cut a moment later than we do.
      if (client !== undefined && (client as unknown as DatabaseClient).isCut) {
        release(new Error('it was cut'));
        take(lent, refusals);
        return;
      }
      lent(error && databaseError(error) === null ? raisedByDriver(error) : error, client, release);
    });
  pool.connect = ((lent?: Lent) => {
    if (lent !== undefined) return take(lent);
    return new Promise<pg.PoolClient>((resolve, reject) =>
      take((error, client) => (client === undefined ? reject(error) : resolve(client))),
    );
  }) as typeof pool.connect;
}

/** Whether a pooler takes no settings at the start of a connection. Source: `set_startup_options` in PgBouncer's client.c. */
export function refusesSettings(error: unknown): boolean {
  const refused = databaseError(error);
  return refused?.code === '08P01' && /startup parameter/.test(refused.message);
}

/** How often a connection is opened again that ended before its own limits were asked for. */
export const TOO_LATE_TRIES = 5;

/**
 * Whether a default of `transaction_timeout` ended a connection before that could be set aside, which only one of a few
 * milliseconds can.
 */
export function wasTooLate(error: unknown): boolean {
  return databaseError(error)?.code === '25P04';
}

/**
 * One connection over a socket of the caller's, not connected yet: the caller connects it, ends it, and destroys the socket
 * where the other side may be gone. A connection that breaks ends (`end`), and is no error of the process. Where it is refused
 * for its settings (`refusesSettings`), the next one does without if `peer` says so.
 */
export function singleConnection(
  url: string,
  applicationName: string,
  socket: Socket,
  peer: DatabasePeer = { takesSettings: true, keepsStatements: false },
): pg.Client {
  return new DatabaseClient({ url, applicationName, peer, stream: () => socket });
}

/**
 * Waits for an answer of the database, and that it takes writes. Throws, with a message for people, what keeps it from
 * serving.
 */
export async function pingDatabase(db: Queryable): Promise<void> {
  let rows: { read_only: boolean }[];
  try {
    rows = (
      await db.execute<{ read_only: boolean }>(
        sql`SELECT current_setting('transaction_read_only')::boolean AS read_only`,
      )
    ).rows;
  } catch (error) {
    throw new Error(`${databaseTrouble(error) ?? 'fails'}: ${rootMessage(error)}`, { cause: error });
  }
  if (rows[0]?.read_only) throw new Error('is read-only at the moment (25006)');
}

/** Whether a PostgreSQL at `url` takes connections and answers; it is waited for two seconds each. */
export async function acceptsConnections(url: string): Promise<boolean> {
  const peer: DatabasePeer = { takesSettings: false, keepsStatements: false };
  const client = new DatabaseClient({
    url,
    applicationName: 'mooring',
    peer,
    connectLimitMs: 2_000,
    answerLimitMs: 2_000,
  });
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
