/**
 * What a server, a role, a database or a pooler makes of a session: none of it may change what is read, what is written, or how
 * long anything may take; where it can't be helped, it is said.
 */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { describeError } from '../../api/errors.ts';
import { checkSessions } from '../../db/check-sessions.ts';
import { type OpenDatabase, openDatabase, pingDatabase } from '../../db/connect.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import { listenAgainMs, OperationOutcomes } from '../../db/operation-outcomes.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { createTokenInDatabase } from '../../db/transactions/create-token.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { AWKWARD_TEXT, makeAwkwardInstance } from '../support/awkward-instance.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { MIGRATION_NAMES } from '../support/migrations.ts';
import { TransactionPooler } from '../support/transaction-pooler.ts';
import { eventually } from '../support/wait.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.stop());

const ends: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

function opened(url: string, maxConnections = 3): OpenDatabase {
  const through = openDatabase(url, { maxConnections, applicationName: 'sessions' });
  ends.push(() => through.close());
  return through;
}

/** A role of its own, with these settings for defaults, that may do all. Returns a URL by it. */
async function roleWith(settings: Readonly<Record<string, string>>): Promise<string> {
  const role = `r${randomUUID().slice(0, 8)}`;
  await database.db.execute(sql.raw(`CREATE ROLE ${role} LOGIN SUPERUSER PASSWORD 'word'`));
  for (const [name, value] of Object.entries(settings))
    await database.db.execute(sql.raw(`ALTER ROLE ${role} SET ${name} = '${value}'`));
  const url = new URL(database.url);
  url.username = role;
  url.password = 'word';
  return url.href;
}

/** Writes and reads what has every type that the schema has, over `through`, and holds it against what is so. */
async function worksWell(through: OpenDatabase): Promise<void> {
  const before = Date.now() - 5_000;
  const { name, instanceId } = await makeAwkwardInstance(through.db);
  const { rows } = await through.db.execute<{ description: string; time_created: string; hex: string }>(
    sql`SELECT description, time_created, encode(sha256('a'::bytea), 'hex') AS hex FROM instance WHERE id = ${instanceId}`,
  );
  expect(rows[0]?.description).toBe(AWKWARD_TEXT);
  const created = new Date(rows[0]?.time_created ?? '').getTime();
  expect(created).toBeGreaterThan(before);
  expect(created).toBeLessThan(Date.now() + 5_000);
  const token = await createTokenInDatabase(
    through.db,
    { name, role: 'viewer', projectId: null, expiresInSeconds: 86_400 * 12 },
    'a test',
  );
  expect(Math.abs((token.timeExpires?.getTime() ?? 0) - Date.now() - 86_400_000 * 12)).toBeLessThan(3_600_000);
  const claimed = await claimStart(through.db, {
    instanceId,
    vmmId: randomUUID(),
    operationId: randomUUID(),
    workflowId: 'w',
    reason: 'user',
  });
  expect(claimed).toBeTruthy();
  await pingDatabase(through.db);
}

/** Each default that a server may have, by the worst of its values. */
const HOSTILE: readonly (readonly [string, string])[] = [
  ...['SQL, DMY', 'SQL, MDY', 'German', 'Postgres, DMY', 'Postgres, YMD', 'ISO, DMY'].map(
    (v) => ['datestyle', v] as const,
  ),
  ...['Asia/Kathmandu', 'America/St_Johns', 'Pacific/Apia', 'UTC'].map((v) => ['timezone', v] as const),
  ...['iso_8601', 'sql_standard', 'postgres_verbose'].map((v) => ['intervalstyle', v] as const),
  ...['repeatable read', 'serializable'].map((v) => ['default_transaction_isolation', v] as const),
  ['default_transaction_deferrable', 'on'],
  ['bytea_output', 'escape'],
  ['client_encoding', 'LATIN1'],
  ['standard_conforming_strings', 'off'],
  ['search_path', 'pg_catalog'],
  ['search_path', 'nowhere, drizzle'],
  ['statement_timeout', '1'],
  ['lock_timeout', '1'],
  ['idle_in_transaction_session_timeout', '1'],
  ['idle_session_timeout', '1'],
  ['extra_float_digits', '-15'],
  ['array_nulls', 'off'],
  ['transform_null_equals', 'on'],
  ['lc_messages', 'C'],
  ['client_min_messages', 'debug5'],
  ['default_text_search_config', 'german'],
  ['plan_cache_mode', 'force_generic_plan'],
  ['row_security', 'off'],
];

describe('a default of the role', () => {
  beforeAll(async () => {
    await database.addSled({ threads: 100_000, memoryBytes: 2 ** 50 });
  });

  test.each(HOSTILE)('%s = %s does not matter', async (name, value) => {
    const through = opened(await roleWith({ [name]: value }));
    await checkSessions(through, database.url, (message) => expect.fail(message));
    await worksWell(through);
  });

  test('nor do all of them at once, for the database too', async () => {
    const url = await roleWith(Object.fromEntries(HOSTILE));
    const { pathname } = new URL(url);
    for (const [name, value] of HOSTILE.filter(([name]) => name !== 'search_path'))
      await database.db.execute(sql.raw(`ALTER DATABASE ${pathname.slice(1)} SET ${name} = '${value}'`));
    ends.push(() => database.db.execute(sql.raw(`ALTER DATABASE ${pathname.slice(1)} RESET ALL`)));
    const through = opened(url);
    await checkSessions(through, url, (message) => expect.fail(message));
    await worksWell(through);
    await expect(migrateDatabase(url)).resolves.toEqual([]);
  });

  test('a role or server that may only read is obeyed: 503, not ready, and by name', async () => {
    const through = opened(await roleWith({ default_transaction_read_only: 'on' }));
    await expect(pingDatabase(through.db)).rejects.toThrow(/is read-only at the moment \(25006\)/);
    const error = await createProject(through.db, { name: 'read-only', description: '' }).catch((reason) => reason);
    expect(describeError(error)).toMatchObject({
      status: 503,
      code: 'ServiceUnavailable',
      message: expect.stringMatching(/^PostgreSQL is read-only .*\(25006\): try again$/),
    });
  });
});

/** Each way of a server not to serve: 503, and its name. */
test.each([
  ...['25006', '53000', '53100', '53200', '53300', '57P01', '57P02', '57P03', '57014', '55P03', '08006', '08P01'],
  ...['28000', '28P01', '3D000', '25P03', '25P04', '40001', '40P01', '58030', '26000', '42P05'],
])('PostgreSQL’s %s is 503, and says that it is PostgreSQL', (code) => {
  const cause = Object.assign(new pg.DatabaseError('some words of its own', 1, 'error'), { code });
  expect(describeError(new Error('Failed query: a secret', { cause }))).toEqual({
    status: 503,
    code: 'ServiceUnavailable',
    message: expect.stringMatching(new RegExp(`^PostgreSQL [^:]*\\(${code}\\): try again$`)),
  });
});

test.each(['23505', '42P01', '42703', '22P02', 'XX000'])('PostgreSQL’s %s stays a fault of ours', (code) => {
  const cause = Object.assign(new pg.DatabaseError('some words', 1, 'error'), { code });
  expect(describeError(new Error('Failed query', { cause })).status).toBe(500);
});

test('a server that takes no more connections, and one that lets nobody in, are 503 too', async () => {
  const url = new URL(await roleWith({}));
  const role = url.username;
  await database.db.execute(sql.raw(`ALTER ROLE ${role} NOSUPERUSER CONNECTION LIMIT 0`));
  const refusals = { [url.href]: /no more connections \(53300\)/ } as Record<string, RegExp>;
  url.password = 'wrong';
  refusals[url.href] = /does not let this process in \(28P01\)/;
  for (const [to, message] of Object.entries(refusals)) {
    const through = opened(to);
    const error = await through.db.execute(sql`SELECT 1`).catch((reason: unknown) => reason);
    expect(describeError(error)).toMatchObject({ status: 503, message: expect.stringMatching(message) });
    await expect(pingDatabase(through.db)).rejects.toThrow(message);
  }
});

describe('behind a pooler in transaction mode', () => {
  async function pooled(url: string, options: Partial<{ size: number; ignored: string[] }> = {}) {
    const pooler = await TransactionPooler.open(url, { size: 2, ...options });
    ends.push(() => pooler.close());
    return pooler;
  }
  const IGNORED = [
    ...['statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout', 'idle_session_timeout'],
    ...['default_transaction_isolation', 'default_transaction_deferrable', 'search_path', 'bytea_output'],
    ...['IntervalStyle', 'extra_float_digits', 'array_nulls', 'transform_null_equals'],
  ];

  test.each([
    ['refuses settings', []],
    ['takes them and forgets them', IGNORED],
  ])('that %s, everything works, from the first connection on', async (_, ignored) => {
    await database.addSled({ threads: 100_000, memoryBytes: 2 ** 50 });
    const pooler = await pooled(database.url, { ignored });
    expect(await migrateDatabase(pooler.url)).toEqual([]);
    const through = opened(pooler.url, 6);
    const said: string[] = [];
    await checkSessions(through, pooler.url, (message) => said.push(message));
    expect(said.join()).toMatch(/statement_timeout is "0".*ALTER ROLE "mooring" SET statement_timeout = '8000'/);
    expect(said.join()).toMatch(/loses prepared statements/);
    await Promise.all(Array.from({ length: 12 }, () => worksWell(through)));
    expect(pooler.refused.size > 0).toBe(ignored.length === 0);
  });

  test.each([
    ['refuses settings', []],
    ['forgets them', IGNORED],
  ])(
    'that %s, a role with the time-outs that are asked for has nothing to be said of its settings',
    async (_, ignored) => {
      const url = await roleWith({
        statement_timeout: '8000',
        idle_in_transaction_session_timeout: '15000',
        extra_float_digits: '1',
      });
      const pooler = await pooled(url, { ignored });
      const said: string[] = [];
      await checkSessions(opened(pooler.url), pooler.url, (message) => said.push(message));
      expect(said).toEqual([expect.stringMatching(/loses prepared statements/)]);
    },
  );

  test('a role whose values can’t be read right is refused, with what to do', async () => {
    const pooler = await pooled(await roleWith({ search_path: '', bytea_output: 'escape' }));
    await expect(checkSessions(opened(pooler.url), pooler.url, () => {})).rejects.toThrow(
      /bytea_output is "escape", search_path is .*ALTER ROLE "r\w+" SET bytea_output = 'hex'; .*SET search_path = public/,
    );
  });

  test.each([
    ['refuses settings', []],
    ['forgets them', IGNORED],
  ])('that %s, a transaction has its time-outs and its isolation, whatever the role has', async (_, ignored) => {
    const url = await roleWith({
      default_transaction_isolation: 'serializable',
      statement_timeout: '0',
      lock_timeout: '3',
      transaction_timeout: '5s',
    });
    const pooler = await pooled(url, { ignored });
    const through = opened(pooler.url);
    const held = await through.db.transaction(async (open) => {
      const { rows } = await open.execute(sql`SELECT current_setting('statement_timeout') AS statement,
        current_setting('idle_in_transaction_session_timeout') AS idle, current_setting('lock_timeout') AS lock,
        current_setting('transaction_isolation') AS isolation, current_setting('transaction_timeout', true) AS whole`);
      return rows[0];
    });
    expect(held).toEqual({ statement: '8s', idle: '15s', lock: '0', isolation: 'read committed', whole: '0' });
    // Whoever else the pooler serves has what the role has.
    const other = new pg.Client({ connectionString: pooler.url });
    await other.connect();
    ends.push(() => other.end());
    for (let more = 0; more < 4; more++)
      expect((await other.query(`SHOW transaction_timeout`)).rows).toEqual([{ transaction_timeout: '5s' }]);
    // One that asks for another isolation gets it.
    const snapshot = await through.db.transaction(
      async (open) => (await open.execute(sql`SELECT current_setting('transaction_isolation') AS i`)).rows[0],
      { isolationLevel: 'repeatable read', accessMode: 'read only' },
    );
    expect(snapshot).toEqual({ i: 'repeatable read' });
  });

  test('dates are read right, whatever the role has: the pooler keeps these settings for each client', async () => {
    const pooler = await pooled(await roleWith({ datestyle: 'German', timezone: 'Asia/Kathmandu' }));
    await database.addSled({ threads: 100_000, memoryBytes: 2 ** 50 });
    const through = opened(pooler.url);
    await checkSessions(through, pooler.url, () => {});
    await worksWell(through);
  });

  test('nobody who migrates leaves a lock, or waits for one that nobody holds', async () => {
    const name = `pooled_${randomUUID().slice(0, 8)}`;
    await database.db.execute(sql`CREATE DATABASE ${sql.identifier(name)} TEMPLATE template0`);
    const own = new URL(database.url);
    own.pathname = `/${name}`;
    const pooler = await pooled(own.href);
    const done = await Promise.all(Array.from({ length: 3 }, () => migrateDatabase(pooler.url)));
    expect(done.flat().sort()).toEqual(MIGRATION_NAMES);
    const { rows } = await database.db.execute(sql`SELECT FROM pg_locks WHERE locktype = 'advisory'`);
    expect(rows).toHaveLength(0);
    // A client that holds one of the two server connections in a transaction is in nobody's way.
    const other = new pg.Client({ connectionString: pooler.url });
    await other.connect();
    ends.push(() => other.end());
    await other.query('BEGIN');
    expect(await migrateDatabase(pooler.url)).toEqual([]);
  });

  test('who listens hears nothing, knows it, and comes again once a minute', async () => {
    const pooler = await pooled(database.url);
    const { db } = opened(pooler.url);
    const lines: string[] = [];
    const log = createLog('test', 'silent');
    log.warn = ((_: unknown, text: string) => lines.push(text)) as never;
    const listener = new OperationOutcomes({ url: pooler.url, db, log, applicationName: 'a-deaf-listener' });
    listener.start();
    ends.push(() => listener.close());
    await eventually(() => lines.length > 0, 'it never said that it hears nothing');
    expect(lines[0]).toMatch(/are not heard from PostgreSQL: Temporal is asked/);
    expect(listener.hears).toBe(false);
    const seconds = (isDeaf: boolean) =>
      [0, 1, 2, 3, 4, 5, 50].map((failures) => listenAgainMs(failures, isDeaf) / 1_000);
    expect(seconds(true)).toEqual([5, 10, 20, 40, 60, 60, 60]);
    expect(seconds(false)).toEqual([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]);
  });
});

test('who waits for what it hears goes on at once when it hears no more', async () => {
  const log = createLog('test', 'silent');
  const listener = new OperationOutcomes(
    { url: database.url, db: database.db, log, applicationName: 'a-listener' },
    { proveEveryMs: 100 },
  );
  listener.start();
  ends.push(() => listener.close());
  await eventually(() => listener.hears, 'it never heard');
  const never = new AbortController();
  // An hour: only the break of the connection can end it.
  const waiting = listener.whileItHears(3_600_000, never.signal);
  await database.db.execute(
    sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'a-listener'`,
  );
  await waiting;
  await eventually(() => listener.hears, 'it never heard again');
  const calledOff = listener.whileItHears(3_600_000, AbortSignal.abort(new Error('called off')));
  await expect(calledOff).rejects.toThrow('called off');
});
