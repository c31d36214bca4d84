/** What becomes of a process whose connection to PostgreSQL breaks. */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { describeError } from '../../api/errors.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase({ maxConnections: 2 });
});
afterAll(() => database?.stop());

test('a connection that breaks between two statements of a transaction fails the transaction, and nothing else', async () => {
  // An error that nobody listened for would end the process: the test runner counts it as a failure.
  let ended = Promise.resolve();
  database.pool.once('acquire', (client) => {
    ended = new Promise((resolve) => client.once('end', resolve));
  });
  const broken = database.db.transaction(async (transaction) => {
    const { rows } = await transaction.execute(sql`SELECT pg_backend_pid() AS pid`);
    await database.db.execute(sql`SELECT pg_terminate_backend(${rows[0]?.pid}, 5000)`);
    await ended;
    await transaction.execute(sql`SELECT 1`);
  });
  const error = await broken.catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(Error);
  expect(describeError(error)).toMatchObject({ status: 503, code: 'ServiceUnavailable' });
  expect((await database.db.execute(sql`SELECT 1 AS one`)).rows).toEqual([{ one: 1 }]);
});
