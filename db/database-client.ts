/**
 * One connection to PostgreSQL on which no wait is without a limit of this side's own. `statement_timeout` is kept by the
 * server: one that hangs, or a network that swallows, keeps nothing. So each answer is waited for here, and a connection that
 * gave none is cut, never given back. What a session's defaults could change is asked for as the connection is opened.
 */
import { createHash } from 'node:crypto';
import type { Duplex } from 'node:stream';
import pg from 'pg';
import { raisedByDriver } from './errors.ts';

/** How long the server gives one statement, in milliseconds: shorter than any activity's time-out, so that a lock can't outlive it. */
export const STATEMENT_TIMEOUT_MS = 8_000;
/** How long the server leaves a transaction open that nobody goes on with, in milliseconds. */
const IDLE_IN_TRANSACTION_MS = 15_000;
/** How long an answer is waited for here, in milliseconds: the server's own limit, and a second for the way. */
const ANSWER_LIMIT_MS = STATEMENT_TIMEOUT_MS + 1_000;
/** How long a connection may take to be opened, in milliseconds: TCP, TLS and authentication together. */
export const CONNECT_LIMIT_MS = 5_000;
/** How long the other side may take to confirm the end of a connection, in milliseconds. */
const END_LIMIT_MS = 1_000;
/** How long a connection is idle before the kernel asks whether the other side lives, in milliseconds. */
const KEEP_ALIVE_AFTER_MS = 10_000;

/**
 * What every connection asks for at its start, whatever the server, the role or the database have for defaults: how values
 * are written. PgBouncer keeps these for each of its clients, in every mode.
 * Source: `ignore_startup_parameters` in https://www.pgbouncer.org/config.html
 */
const WRITING: Readonly<Record<string, string>> = {
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  TimeZone: 'UTC',
  standard_conforming_strings: 'on',
};

/**
 * The same of how statements run; a pooler in transaction mode refuses these, or forgets them. `default_transaction_read_only`
 * is not among them: a server that takes no writes is obeyed, and says so.
 */
const RUNNING: Readonly<Record<string, string>> = {
  statement_timeout: String(STATEMENT_TIMEOUT_MS),
  idle_in_transaction_session_timeout: String(IDLE_IN_TRANSACTION_MS),
  lock_timeout: '0',
  idle_session_timeout: '0',
  default_transaction_isolation: 'read committed',
  default_transaction_deferrable: 'off',
  search_path: 'public',
  bytea_output: 'hex',
  IntervalStyle: 'postgres',
  extra_float_digits: '1',
  array_nulls: 'on',
  transform_null_equals: 'off',
};

/**
 * What a start-up can't ask for: newer than some version that is served, of a module that is loaded later, or nothing that a
 * pooler's `ignore_startup_parameters` would name. Each is set where the server knows it and has something else.
 */
const SINCE_OPEN: Readonly<Record<string, string>> = {
  // PostgreSQL 17; it ends the connection, whatever its transaction does.
  transaction_timeout: '0',
  // Any refusal would end the connection.
  exit_on_error: 'off',
  // What was answered is to survive a crash: only `off` breaks that, the others say what standbys have to do with it. A server
  // without `fsync` promises nothing.
  synchronous_commit: 'on',
  backslash_quote: 'safe_encoding',
  default_table_access_method: 'heap',
  gin_fuzzy_search_limit: '0',
  row_security: 'on',
  restrict_nonsystem_relation_kind: '',
  timezone_abbreviations: 'Default',
  'plpgsql.extra_errors': 'none',
  // Triggers don't run for a replica. Without a superuser's rights it can't be set, and is refused by `check-sessions.ts`.
  session_replication_role: 'origin',
};

/** The statement that sets it for the session, or (`isLocal`) for the transaction; no version of PostgreSQL refuses it. */
export function setSinceOpen(isLocal: boolean): string {
  const wanted = Object.entries(SINCE_OPEN).map(([name, value]) => `('${name}', '${value}')`);
  return `/* open-session */ SELECT set_config(name, wanted, ${isLocal}) FROM (VALUES ${wanted.join(', ')}) AS of (name, wanted)
    WHERE current_setting(name, true) <> wanted
      AND (name <> 'synchronous_commit' OR current_setting(name) = 'off' AND current_setting('fsync') = 'on')
      AND (name <> 'session_replication_role' OR current_setting('is_superuser') = 'on')`;
}

/** Settings that a single statement needs right to be understood, or to find its tables. */
export const NEEDED_SETTINGS: readonly string[] = [
  ...Object.keys(WRITING),
  'search_path',
  'bytea_output',
  'session_replication_role',
];

/** What is asked for as a connection is opened, by setting; not every server knows all of them. */
export function wantedSettings(): Readonly<Record<string, string>> {
  return { ...WRITING, ...RUNNING, ...SINCE_OPEN };
}

/** What a server, or the pooler before it, has shown that it doesn't do. Shared by the connections of a pool. */
export interface DatabasePeer {
  /** Whether it takes {@link RUNNING} as start-up parameters; `false` once it has refused them. */
  takesSettings: boolean;
  /** Whether a pooler is between, which may forget them without a word: it gives its clients numbers of its own. */
  isShared?: boolean;
  /** Whether a statement that was prepared by name is there at its next use; `false` where that can't be relied upon. */
  keepsStatements: boolean;
  /** Called when an answer did not come in time, with the connection, which is cut already. */
  onSilence?: (silent: DatabaseClient) => void;
}

/** How a connection is made. */
export interface DatabaseClientOptions {
  readonly url: string;
  readonly applicationName: string;
  readonly peer: DatabasePeer;
  /** How long each answer is waited for, in milliseconds; default 9000. */
  readonly answerLimitMs?: number;
  /** How long the connection may take to be opened, in milliseconds; default 5000. */
  readonly connectLimitMs?: number;
  /** The socket to speak over, not connected yet; its own by default. */
  readonly stream?: (() => Duplex) | undefined;
}

/** What the driver is given of that; a pool needs the same. */
export function driverOptions(options: DatabaseClientOptions): pg.ClientConfig {
  return {
    connectionString: options.url,
    application_name: options.applicationName,
    connectionTimeoutMillis: options.connectLimitMs ?? CONNECT_LIMIT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: KEEP_ALIVE_AFTER_MS,
    ...(options.stream === undefined ? {} : { stream: options.stream }),
  };
}

/** The parts of the driver's client that its types leave out. */
interface DriverClient {
  readonly connection: { readonly stream: Duplex };
  readonly processID?: number | null;
  getStartupConf(): Record<string, string>;
  getTransactionStatus(): 'I' | 'T' | 'E' | null;
  /** There while a pool has lent the connection. */
  release?: (error?: Error) => void;
}
type Ask = (config: unknown, values?: unknown) => Promise<pg.QueryResult>;
type Answered = (error: Error | null, result?: pg.QueryResult) => void;

/** The server had no answer within the limit; the connection is cut. */
export class DatabaseSilent extends Error {
  override readonly name = 'DatabaseSilent';
}

/** Unknown prepared statement; one of that name is there already: a pooler that gave this client another's connection. */
const LOST_STATEMENT = new Set(['26000', '42P05']);
/** Read-only, shutting down, broken inside: another connection may lead to a better server. */
const UNFIT = /^(25006|57P0[123]|XX)/;

/** A connection with limits. Not to be given to anything that streams: one answer is one wait. */
export class DatabaseClient extends pg.Client {
  readonly #peer: DatabasePeer;
  /** What broke the connection. */
  #lastWord: Error | null = null;
  /** How long each answer is waited for, in milliseconds, from the next question on. */
  answerLimitMs: number;
  /** Whether it should not be used again, though it answers. */
  unfit = false;

  constructor(options: DatabaseClientOptions) {
    super(driverOptions(options));
    this.#peer = options.peer;
    this.answerLimitMs = options.answerLimitMs ?? ANSWER_LIMIT_MS;
    this.#askWithLimit();
    this.#connectWithSettings();
    this.#endWithLimit();
    const driver = this.#driver;
    const startup = driver.getStartupConf.bind(this);
    driver.getStartupConf = () => this.#settings(startup());
    // What breaks between two statements fails the next one; without a listener it would end the process.
    this.on('error', (error) => {
      this.#lastWord = error;
    });
  }

  /** Cuts the connection at once; what it was asked fails with `error`. */
  cut(error?: Error): void {
    this.#driver.connection.stream.destroy(error);
  }

  /** Whether it was cut, or broke. */
  get isCut(): boolean {
    return this.#driver.connection.stream.destroyed;
  }

  get #driver(): DriverClient {
    return this as unknown as DriverClient;
  }

  #settings(asked: Record<string, string>): Record<string, string> {
    const running = this.#peer.takesSettings ? { ...RUNNING } : {};
    // Whoever puts the tables elsewhere says so in the URL.
    if (/search_path/.test(asked.options ?? '')) delete (running as Record<string, string>).search_path;
    return { ...asked, ...WRITING, ...running };
  }

  /** What the start can't ask for is asked for before anybody has the connection. */
  #connectWithSettings(): void {
    const connect = this.connect.bind(this) as () => Promise<unknown>;
    const connectAndSet = async () => {
      const made = await connect();
      if (this.#peer.takesSettings) await this.#setSinceOpen();
      return made;
    };
    const connectSet = (callback?: (error?: Error) => void) => {
      const made = connectAndSet();
      if (callback === undefined) return made;
      made.then(
        () => callback(),
        (error: Error) => callback(error),
      );
      return undefined;
    };
    this.connect = connectSet as unknown as typeof this.connect;
  }

  async #setSinceOpen(): Promise<void> {
    const limitMs = this.answerLimitMs;
    this.answerLimitMs = Math.min(limitMs, CONNECT_LIMIT_MS);
    try {
      // A session behind a pooler is somebody else's a moment later: there nothing is set, and transactions bring it.
      const { processID } = this.#driver;
      const isDirect = `pg_backend_pid() = ${Number(processID ?? 0)}`;
      const asked = this.query(`${setSinceOpen(false)} AND ${isDirect}; SELECT ${isDirect} AS direct`);
      const results = (await asked) as unknown as readonly pg.QueryResult<{ direct: boolean }>[];
      if (results.at(-1)?.rows[0]?.direct === false) this.#peer.isShared = true;
    } catch (error) {
      this.cut();
      // A server that ended it before it was asked has said why, and the driver only that it can't be asked.
      throw error instanceof pg.DatabaseError ? error : (this.#lastWord ?? error);
    } finally {
      this.answerLimitMs = limitMs;
    }
  }

  #askWithLimit(): void {
    const ask = this.query.bind(this) as unknown as Ask;
    const query = (config: unknown, values?: unknown, callback?: unknown) => {
      const answered = (typeof values === 'function' ? values : callback) as Answered | undefined;
      const answer = this.#ask(ask, config, typeof values === 'function' ? undefined : values);
      if (answered === undefined) return answer;
      answer.then(
        (result) => answered(null, result),
        (error: Error) => answered(error),
      );
      return undefined;
    };
    this.query = query as unknown as typeof this.query;
  }

  async #ask(ask: Ask, config: unknown, values: unknown): Promise<pg.QueryResult> {
    const limitMs = this.answerLimitMs;
    const timer = setTimeout(() => this.#giveUp(limitMs), limitMs);
    try {
      return await this.#askPrepared(ask, this.#beginning(config), values);
    } catch (error) {
      if (error instanceof pg.DatabaseError) this.unfit ||= UNFIT.test(error.code ?? '');
      else if (this.isCut) raisedByDriver(error);
      // drizzle does not give a connection back on which not even a transaction could be begun.
      if (isBegin(config)) this.#driver.release?.(error as Error);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The statement by its name, so that it is parsed and planned once; without where names get lost. */
  async #askPrepared(ask: Ask, config: unknown, values: unknown): Promise<pg.QueryResult> {
    const sent = this.#peer.keepsStatements ? named(config, values) : config;
    try {
      return await ask(sent, values);
    } catch (error) {
      const lost = sent !== config && error instanceof pg.DatabaseError && LOST_STATEMENT.has(error.code ?? '');
      if (!lost) throw error;
      this.#peer.keepsStatements = false;
      // Within a transaction it has ended that: whoever runs it begins anew.
      if (this.#driver.getTransactionStatus() !== 'I') throw error;
      return ask(config, values);
    }
  }

  /** Where settings are not taken at the start, a transaction brings its own, in the same message that begins it. */
  #beginning(config: unknown): unknown {
    if ((this.#peer.takesSettings && this.#peer.isShared !== true) || !isBegin(config)) return config;
    const begin = config.text === 'begin' ? 'begin isolation level read committed' : config.text;
    const settings = Object.entries(RUNNING)
      // Where the tables are, a single statement must know as well: that is left as it is.
      .filter(([name]) => !/^(default_transaction|idle_session|search_path)/.test(name))
      .map(([name, value]) => `set local ${name} = '${value}'`);
    return { ...config, text: [begin, ...settings, setSinceOpen(true)].join('; ') };
  }

  #giveUp(limitMs: number): void {
    this.cut(new DatabaseSilent(`PostgreSQL gave no answer within ${limitMs / 1_000} s; the connection was cut`));
    this.#peer.onSilence?.(this);
  }

  #endWithLimit(): void {
    const end = this.end.bind(this) as (callback?: (error: Error) => void) => Promise<void>;
    const limited = (callback?: (error: Error) => void) => {
      // A process that hangs on the other side never closes.
      const timer = setTimeout(() => this.cut(), END_LIMIT_MS).unref();
      this.once('end', () => clearTimeout(timer));
      return end(callback);
    };
    this.end = limited as typeof this.end;
  }
}

/** Whether a statement begins a transaction of drizzle's. */
function isBegin(config: unknown): config is { readonly text: string } {
  return typeof config === 'object' && config !== null && /^begin\b/.test(String((config as { text?: unknown }).text));
}

const statementNames = new Map<string, string>();

/**
 * Gives a statement with parameters a name of its own, so that each connection has PostgreSQL parse and plan it once: half of
 * what PostgreSQL did for a start was that (docs/performance.md). The texts are few, since values are never written into them.
 */
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
