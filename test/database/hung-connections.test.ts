/** A PostgreSQL whose processes hang without closing their connections, as after a fail-over, while new ones are served. */
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { describeError } from '../../api/errors.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/wait.ts';

const CONNECTIONS = 4;
const NAME = 'hung-connections';
/** Shorter than by default, in milliseconds. */
const ANSWER_LIMIT_MS = 1_000;

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.stop());

let through: OpenDatabase;
beforeEach(() => {
  through = openDatabase(database.url, {
    maxConnections: CONNECTIONS,
    applicationName: NAME,
    answerLimitMs: ANSWER_LIMIT_MS,
  });
});
const stopped = new Set<number>();
afterEach(async () => {
  for (const pid of stopped) process.kill(pid, 'SIGCONT');
  stopped.clear();
  await through.close();
  await eventually(async () => (await processes()).length === 0, 'connections are left');
});

/** The server's processes of the pool's connections. */
async function processes(): Promise<number[]> {
  const { rows } = await database.db.execute<{ pid: number }>(
    sql`SELECT pid FROM pg_stat_activity WHERE application_name = ${NAME}`,
  );
  return rows.map(({ pid }) => pid);
}

/** Opens every connection of the pool, then stops the processes behind them. */
async function hang(): Promise<void> {
  await Promise.all(Array.from({ length: CONNECTIONS }, () => through.db.execute(sql`SELECT pg_sleep(0.05)`)));
  for (const pid of await processes()) {
    process.kill(pid, 'SIGSTOP');
    stopped.add(pid);
  }
  expect(stopped.size).toBe(CONNECTIONS);
}

const answers = async () => (await through.db.execute<{ one: number }>(sql`SELECT 1 AS one`)).rows[0]?.one === 1;

test('the calls that meet them get 503, and the pool serves again over new connections while they still hang', async () => {
  await hang();
  const asked = Array.from({ length: 3 * CONNECTIONS }, () => answers());
  const errors = (await Promise.allSettled(asked)).flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
  expect(errors.length).toBeGreaterThanOrEqual(CONNECTIONS);
  for (const error of errors) expect(describeError(error)).toMatchObject({ status: 503, code: 'ServiceUnavailable' });
  for (let call = 0; call < 2 * CONNECTIONS; call++) expect(await answers()).toBe(true);
  for (const pid of stopped) expect(() => process.kill(pid, 0)).not.toThrow();
});

test('one answer that does not come is enough to give all idle connections up', async () => {
  await hang();
  await expect(answers()).rejects.toThrow();
  for (let call = 0; call < CONNECTIONS; call++) expect(await answers()).toBe(true);
});

test.each(['begins', 'is in the middle', 'is to be committed'] as const)(
  'a transaction that %s fails, and leaves no connection behind',
  async (when) => {
    const transactions = Array.from({ length: 2 * CONNECTIONS }, async (_, number) => {
      const isFirst = number < CONNECTIONS;
      return through.db.transaction(async (open) => {
        if (when !== 'begins' && isFirst) {
          const { rows } = await open.execute<{ pid: number }>(sql`SELECT pg_backend_pid() AS pid`);
          const pid = rows[0]?.pid ?? 0;
          process.kill(pid, 'SIGSTOP');
          stopped.add(pid);
          if (when === 'is in the middle') await open.execute(sql`SELECT 2`);
        }
      });
    });
    if (when === 'begins') {
      await Promise.allSettled(transactions);
      await hang();
      const begun = Array.from({ length: CONNECTIONS }, () => through.db.transaction(async () => {}));
      for (const one of await Promise.allSettled(begun)) expect(one.status).toBe('rejected');
    } else {
      const ended = await Promise.allSettled(transactions);
      for (const one of ended.slice(0, CONNECTIONS)) expect(one.status).toBe('rejected');
    }
    expect(stopped.size).toBe(CONNECTIONS);
    await eventually(answers, 'the pool never serves again');
    expect(await through.db.transaction(() => answers())).toBe(true);
    expect(through.pool.totalCount).toBeLessThanOrEqual(CONNECTIONS);
  },
);

test('a pool is closed though its connections hang, idle or not', async () => {
  await hang();
  const closing = openDatabase(database.url, {
    maxConnections: 2,
    applicationName: NAME,
    answerLimitMs: ANSWER_LIMIT_MS,
  });
  const busy = closing.db.execute(sql`SELECT pg_sleep(5)`);
  const refused = busy.catch((error: unknown) => error);
  await eventually(async () => (await processes()).length > CONNECTIONS, 'it never asked');
  for (const pid of await processes()) {
    process.kill(pid, 'SIGSTOP');
    stopped.add(pid);
  }
  await Promise.all([closing.close(), through.close()]);
  expect(await refused).toBeInstanceOf(Error);
  // The end of each test closes it again.
  through = openDatabase(database.url, { maxConnections: 1, applicationName: NAME });
});

test('a server that takes no writes any more is left for another one, also by transactions', async () => {
  await through.db.transaction((open) => open.execute(sql`SELECT 1`));
  const before = await processes();
  // As a primary that has become a standby: what was begun goes on and may only read.
  await expect(
    through.db.transaction(async (open) => {
      await open.execute(sql`SET TRANSACTION READ ONLY`);
      await open.execute(sql`UPDATE sled SET name = name`);
    }),
  ).rejects.toThrow();
  const { rows } = await through.db.execute<{ pid: number }>(sql`SELECT pg_backend_pid() AS pid`);
  expect(before).not.toContain(rows[0]?.pid);
});
