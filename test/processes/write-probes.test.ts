/** PostgreSQL and Temporal that answer and take no writes: readiness and the doctor say which, and why. */
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { openDatabase, pingDatabase } from '../../db/connect.ts';
import { probeWrites } from '../../db/transactions/probe-writes.ts';
import { examine } from '../../doctor/examine.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { readinessProblems } from '../../platform/telemetry/readiness.ts';
import { WriteProbe } from '../../platform/telemetry/write-probe.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { type ClientConnection, connectClient } from '../../temporal/connection.ts';
import { probeTemporalWrites, writeProbes } from '../../temporal/write-probes.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { temporaryFolder } from '../support/qemu.ts';
import { canMount, empty, fill, mountSmallDisk } from '../support/small-disk.ts';

const ends: (() => unknown)[] = [];
const mounts = await canMount('a Temporal whose disk is full');
let disk: string;
let database: TestDatabase;
let server: TemporalServer;
let connection: ClientConnection;

beforeAll(async () => {
  const folder = await temporaryFolder();
  ends.push(folder.close);
  disk = mounts ? mountSmallDisk(folder.path, '64m', ends) : folder.path;
  const { path: binary } = await findTemporalBinary();
  [database, server] = await Promise.all([
    startTestDatabase(),
    startTemporalServer({ binary, uiPort: null, dbFilename: join(disk, 'temporal.db') }),
  ]);
  connection = await connectClient({ address: server.address });
  ends.push(
    () => database.stop(),
    () => server.stop(),
    () => connection.close(),
  );
});
afterEach(() => database.db.execute(sql`DROP TRIGGER IF EXISTS full_disk ON lease_service`));
afterAll(async () => {
  for (const end of ends.reverse()) await end();
});

/** What readiness says now, not what it said a moment ago. */
const problems = () =>
  readinessProblems(
    () => pingDatabase(database.db),
    connection.connection,
    'default',
    writeProbes(database.db, connection.connection, 'default'),
  );

/** PostgreSQL reads, and says that its disk is full to whoever writes. */
async function fillPostgres(): Promise<void> {
  await database.db.execute(sql`
    CREATE OR REPLACE FUNCTION say_full() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$`);
  await database.db.execute(
    sql`CREATE TRIGGER full_disk BEFORE UPDATE ON lease_service FOR EACH STATEMENT EXECUTE FUNCTION say_full()`,
  );
}

test('both take writes: there is nothing to say, and nothing is left of the trials', async () => {
  expect(await problems()).toEqual([]);
  expect(await problems()).toEqual([]);
  const { connection: temporal } = connection;
  await waitUntil(async () => {
    const { executions } = await temporal.workflowService.listWorkflowExecutions({ namespace: 'default' });
    return (executions ?? []).every(({ type }) => type?.name !== 'mooring-write-probe');
  }, 'the trial workflow is still there');
});

describe('PostgreSQL', () => {
  test('that answers and takes no writes is named, by readiness and by the doctor', async () => {
    await fillPostgres();
    await pingDatabase(database.db);
    expect(await problems()).toEqual([expect.stringMatching(/^PostgreSQL takes no writes: .*No space left on device/)]);
    const { findings } = await examine({
      db: database.db,
      probes: writeProbes(database.db, connection.connection, 'default'),
      atRest: false,
    });
    expect(findings).toEqual([
      expect.objectContaining({ rule: 'takes writes', message: expect.stringMatching(/^PostgreSQL takes no writes/) }),
    ]);
  });

  test('that has no room for what is new, though it has for what is changed, is found out', async () => {
    await database.db.execute(sql`ALTER ROLE CURRENT_USER SET temp_file_limit = '64kB'`);
    const small = openDatabase(database.url, { maxConnections: 1 });
    try {
      await pingDatabase(small.db);
      await expect(probeWrites(small.db)).rejects.toMatchObject({
        cause: expect.objectContaining({ message: expect.stringContaining('temp_file_limit') }),
      });
    } finally {
      await small.close();
      await database.db.execute(sql`ALTER ROLE CURRENT_USER RESET temp_file_limit`);
    }
  });

  test('that can only be read is named', async () => {
    await database.db.execute(sql`ALTER ROLE CURRENT_USER SET default_transaction_read_only = on`);
    const standby = openDatabase(database.url, { maxConnections: 1 });
    try {
      const probe = new WriteProbe('PostgreSQL', () => probeWrites(standby.db), 10_000);
      expect(await probe.problem()).toMatch(/^PostgreSQL takes no writes: .*read-only transaction/);
    } finally {
      await standby.close();
      await database.db.execute(
        sql`BEGIN READ WRITE; ALTER ROLE CURRENT_USER RESET default_transaction_read_only; COMMIT`,
      );
    }
  });
});

test.skipIf(!mounts)('Temporal that answers, on a disk that is full, is named until there is room again', async () => {
  const { connection: temporal } = connection;
  fill(disk);
  let said: string[] = [];
  await waitUntil(async () => {
    said = await problems();
    fill(disk);
    return said.length > 0;
  }, 'nobody found out that Temporal takes no writes');
  expect(said).toEqual([expect.stringMatching(/^Temporal takes no writes: is its disk full/)]);
  // A ping says that it is well.
  expect((await temporal.healthService.check({})).status).toBe(1);
  empty(disk);
  await waitUntil(async () => (await problems()).length === 0, 'it never took writes again');
});

test('a trial is made once in a while, however often one asks, and again soon where it failed', async () => {
  let trials = 0;
  let fails = false;
  const probe = new WriteProbe(
    'PostgreSQL',
    async () => {
      trials += 1;
      if (fails) throw new Error('full');
    },
    1_000,
    { goodMs: 300, badMs: 50 },
  );
  expect(await Promise.all([probe.problem(), probe.problem()])).toEqual([null, null]);
  expect(trials).toBe(1);
  fails = true;
  await waitUntil(async () => (await probe.problem()) !== null, 'it was never tried again');
  fails = false;
  await waitUntil(async () => (await probe.problem()) === null, 'it never recovered');
  expect(trials).toBeGreaterThanOrEqual(3);
});

test('a service that answers no trial in time takes no writes', async () => {
  const probe = new WriteProbe('Temporal', () => new Promise(() => {}), 20);
  expect(await probe.problem()).toMatch(/^Temporal takes no writes: .*no answer in 20 ms/);
});

test('a trial that another process has just made is as good', async () => {
  await Promise.all(Array.from({ length: 5 }, () => probeTemporalWrites(connection.connection, 'default', 10_000)));
});
