/** How the schema is brought up to date: beside readers, by whom it may be, and what is said where it can't be. */
import { randomUUID } from 'node:crypto';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { openDatabase } from '../../db/connect.ts';
import { compareSchema, migrateDatabase, readSchemaState, requireCurrentSchema } from '../../db/migrate.ts';
import { requireDatabaseUrl } from '../../db/unreachable.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { MIGRATION_NAMES, MIGRATIONS } from '../support/migrations.ts';
import { eventually } from '../support/wait.ts';

let database: TestDatabase;
let folder: string;
let url: string;
const clients: pg.Client[] = [];
beforeAll(async () => {
  database = await startTestDatabase();
  folder = await mkdtemp(join(tmpdir(), 'mooring-migrations-'));
});
afterAll(async () => {
  await database?.stop();
  await rm(folder, { recursive: true, force: true });
});
/** A database of its own for a test, migrated. */
async function migrated(): Promise<void> {
  const name = `migrated_${randomUUID().replaceAll('-', '')}`;
  await database.db.execute(sql`CREATE DATABASE ${sql.identifier(name)} TEMPLATE template0`);
  const own = new URL(database.url);
  own.pathname = `/${name}`;
  url = own.href;
  await migrateDatabase(url);
}
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end()));
});

async function connected(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {});
  await client.connect();
  clients.push(client);
  return client;
}

/** The names of what a later build might add. */
const LATER = [0, 1, 2].map((at) => `${String(MIGRATION_NAMES.length + at).padStart(4, '0')}_later`);

/** This build's migrations, and one more of these statements each. */
async function later(...statements: string[]): Promise<string> {
  const to = join(folder, randomUUID());
  await cp(MIGRATIONS, to, { recursive: true });
  const file = join(to, 'meta/_journal.json');
  const journal = JSON.parse(await readFile(file, 'utf8'));
  for (const [at, statement] of statements.entries()) {
    const last = journal.entries.at(-1);
    const tag = LATER[at] ?? '';
    journal.entries.push({ ...last, idx: journal.entries.length, when: last.when + 1_000, tag });
    await writeFile(join(to, `${tag}.sql`), statement);
  }
  await writeFile(file, JSON.stringify(journal));
  return to;
}

const ADDS_A_COLUMN = 'ALTER TABLE instance ADD COLUMN colour text';

test('a migration that meets a dump keeps no reader waiting, says so, and is done when the dump is', async () => {
  await migrated();
  const dump = await connected();
  await dump.query('BEGIN; LOCK TABLE instance, sled, vmm IN ACCESS SHARE MODE');
  const said: string[] = [];
  const migrating = migrateDatabase(url, {
    folder: await later(ADDS_A_COLUMN),
    onProgress: (message) => said.push(message),
  });
  migrating.catch(() => {});
  const { db, close } = openDatabase(url);
  try {
    await eventually(async () => {
      // What the running version asks meanwhile is answered, whether the migration waits at this moment or not.
      await db.execute(sql`SELECT count(*) FROM instance`);
      return said.length > 0;
    }, 'it never said that it waits');
    expect(said[0]).toMatch(`${LATER[0]} waits for a lock`);
    for (let read = 0; read < 20; read++) await db.execute(sql`SELECT count(*) FROM instance`);
    await dump.query('COMMIT');
    expect(await migrating).toEqual([LATER[0]]);
    await db.execute(sql`SELECT colour FROM instance`);
  } finally {
    await close();
  }
});

test('a migration gives up when its time is over, with what to do, and has changed nothing', async () => {
  await migrated();
  const holder = await connected();
  await holder.query('BEGIN; LOCK TABLE instance IN ACCESS SHARE MODE');
  await expect(migrateDatabase(url, { folder: await later(ADDS_A_COLUMN), limitMs: 2_000 })).rejects.toThrow(
    /given up after 2 s: migration \d+_later waits for a lock.*pg_stat_activity/,
  );
  await holder.query('COMMIT');
  expect(await readSchemaState(url)).toEqual({ state: 'current' });
});

test('each migration is a transaction of its own: what was done stays, what failed left nothing', async () => {
  await migrated();
  const three = await later(ADDS_A_COLUMN, 'CREATE TABLE half (); SELECT 1 / 0', 'CREATE TABLE never ()');
  await expect(migrateDatabase(url, { folder: three })).rejects.toThrow(/migration \d+_later failed.*division by zero/);
  expect(await readSchemaState(url, three)).toEqual({ state: 'behind', missing: LATER.slice(1) });
  const client = await connected();
  await client.query('SELECT colour FROM instance');
  await expect(client.query('SELECT FROM half')).rejects.toThrow(/does not exist/);
});

test('many that migrate at once do it once, and leave no lock', async () => {
  await migrated();
  const two = await later(ADDS_A_COLUMN, 'CREATE TABLE once ()');
  const done = await Promise.all(Array.from({ length: 5 }, () => migrateDatabase(url, { folder: two })));
  expect(done.flat().sort()).toEqual(LATER.slice(0, 2));
  const client = await connected();
  expect((await client.query(`SELECT FROM pg_locks WHERE locktype = 'advisory'`)).rows).toHaveLength(0);
});

test('where all is up to date nothing is written, so that a role without any right to change the schema is enough', async () => {
  await migrated();
  const admin = await connected();
  const role = `worker_${randomUUID().slice(0, 8)}`;
  await admin.query(`CREATE ROLE ${role} LOGIN PASSWORD 'word';
    GRANT USAGE ON SCHEMA public, drizzle TO ${role};
    GRANT SELECT ON ALL TABLES IN SCHEMA drizzle TO ${role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ${role};
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO ${role}`);
  const least = new URL(url);
  least.username = role;
  least.password = 'word';
  expect(await migrateDatabase(least.href)).toEqual([]);
  await requireCurrentSchema(least.href);
  await expect(migrateDatabase(least.href, { folder: await later(ADDS_A_COLUMN) })).rejects.toThrow(
    /_later failed.*must be owner/,
  );
  await admin.query(`REVOKE USAGE ON SCHEMA drizzle FROM ${role}`);
  await expect(requireCurrentSchema(least.href)).rejects.toThrow(/GRANT USAGE ON SCHEMA drizzle/);
});

describe('tables that are in another schema of the same database', () => {
  const through = (path: string) => {
    const to = new URL(url);
    to.searchParams.set('options', `-c search_path=${path}`);
    return to.href.replaceAll('+', '%20');
  };

  test.each(['two', 'two,three', 'nowhere', 'pg_catalog', '""'])(
    'are not up to date for who looks in %s: that is said, with where they are',
    async (path) => {
      await migrated();
      const admin = await connected();
      await admin.query('CREATE SCHEMA two; CREATE SCHEMA three');
      const why = /finds no table \(they are in the schema "public"\).*search_path%3Dpublic/;
      await expect(migrateDatabase(through(path))).rejects.toThrow(why);
      await expect(requireCurrentSchema(through(path))).rejects.toThrow(why);
      await expect(migrateDatabase(through(path), { folder: await later(ADDS_A_COLUMN) })).rejects.toThrow(why);
      // Where they are found, whatever comes before, they are.
      for (const right of ['public', 'two,public', 'nowhere,public'])
        expect(await migrateDatabase(through(right))).toEqual([]);
      expect(await migrateDatabase(url)).toEqual([]);
    },
  );

  test('are found again by who names it, and not by who may not use it', async () => {
    const name = `elsewhere_${randomUUID().replaceAll('-', '')}`;
    await database.db.execute(sql`CREATE DATABASE ${sql.identifier(name)} TEMPLATE template0`);
    const own = new URL(database.url);
    own.pathname = `/${name}`;
    url = own.href;
    const admin = await connected();
    await admin.query('CREATE SCHEMA one');
    expect(await migrateDatabase(through('one'))).toEqual(MIGRATION_NAMES);
    expect(await migrateDatabase(through('one'))).toEqual([]);
    await expect(migrateDatabase(url)).rejects.toThrow(/in the schema "one"/);
    const role = `blind_${randomUUID().slice(0, 8)}`;
    await admin.query(`CREATE ROLE ${role} LOGIN PASSWORD 'word';
      GRANT USAGE ON SCHEMA drizzle TO ${role}; GRANT SELECT ON ALL TABLES IN SCHEMA drizzle TO ${role}`);
    const blind = new URL(through('one'));
    blind.username = role;
    blind.password = 'word';
    await expect(requireCurrentSchema(blind.href)).rejects.toThrow(/in the schema "one".*USAGE/);
    await admin.query('DROP SCHEMA one CASCADE');
    await expect(migrateDatabase(through('one'))).rejects.toThrow(/emptied by hand/);
  });
});

describe('a process that is not to migrate', () => {
  test('ends where the schema is too old, and names what is missing and the command', async () => {
    await migrated();
    const client = await connected();
    await client.query('DELETE FROM drizzle.__drizzle_migrations');
    await expect(requireCurrentSchema(url)).rejects.toThrow(
      /older than this build \(0000_schema, .*missing\).*mooring migrate/,
    );
    await client.query('DROP SCHEMA drizzle CASCADE');
    await expect(requireCurrentSchema(url)).rejects.toThrow(/mooring migrate/);
  });

  test('goes on where the schema is newer, as during a roll-out, and says so', async () => {
    await migrated();
    await migrateDatabase(url, { folder: await later(ADDS_A_COLUMN) });
    const said: string[] = [];
    await requireCurrentSchema(url, (message) => said.push(message));
    expect(said.join()).toMatch(/newer than this build, by 1 migration/);
    expect(await migrateDatabase(url, { onProgress: (message) => said.push(message) })).toEqual([]);
    expect(said).toHaveLength(2);
  });

  test('ends, as one that migrates does, where the schema is of another line', async () => {
    await migrated();
    const client = await connected();
    await client.query(`UPDATE drizzle.__drizzle_migrations SET hash = 'another'`);
    await expect(requireCurrentSchema(url)).rejects.toThrow(/not made by a build of this line \(its 0000_schema/);
    await expect(migrateDatabase(url)).rejects.toThrow(/not made by a build of this line/);
  });
});

describe('what a schema is to a build', () => {
  const ours = ['a', 'b', 'c'].map((name, at) => ({ name, folderMillis: at, hash: `hash of ${name}` }));
  const done = (...which: number[]) => which.map((at) => ({ created_at: at, hash: ours[at]?.hash ?? 'unknown' }));
  test.each([
    [done(), { state: 'behind', missing: ['a', 'b', 'c'] }],
    [done(0), { state: 'behind', missing: ['b', 'c'] }],
    [done(0, 2), { state: 'behind', missing: ['b'] }],
    [done(0, 1, 2), { state: 'current' }],
    [done(0, 1, 2, 3, 4), { state: 'ahead', unknown: 2 }],
    [done(0, 1, 3), { state: 'behind', missing: ['c'] }],
    [[{ created_at: 0, hash: 'other' }], { state: 'foreign', migration: 'a' }],
  ] as const)('%j', (rows, state) => {
    expect(compareSchema(ours, rows)).toEqual(state);
  });
});

describe('a URL that leads nowhere', () => {
  const nowhere = (change: (to: URL) => void) => {
    const to = new URL(database.url);
    change(to);
    return to.href;
  };
  test.each([
    ['nobody listens', (to: URL) => Object.assign(to, { port: '1' }), /can't be reached: connect ECONNREFUSED/],
    [
      'no such name',
      (to: URL) => Object.assign(to, { hostname: 'no-such-host.invalid' }),
      /can't be reached: getaddrinfo/,
    ],
    ['no such database', (to: URL) => Object.assign(to, { pathname: '/nothing' }), /has no database of the name/],
    [
      'another password',
      (to: URL) => Object.assign(to, { password: 'wrong' }),
      /does not let this process in \(28P01\)/,
    ],
  ])('%s: the message names the variable and the place, and no password', async (_, change, what) => {
    const to = nowhere(change);
    const { password } = new URL(to);
    for (const work of [migrateDatabase, requireCurrentSchema]) {
      const error = await (work as (url: string) => Promise<unknown>)(to).catch((reason: unknown) => reason as Error);
      expect(error).toBeInstanceOf(Error);
      const { message } = error as Error;
      expect(message).toMatch(/^PostgreSQL at .* \(DATABASE_URL\) /);
      expect(message).toMatch(what);
      expect(message).not.toContain(password);
    }
  });

  test.each(['nonsense', '', 'http://host/db', 'host:5432/db', 'mysql://host/db', 'postgres//u:secret@host'])(
    '%j is refused by the name of its variable, and not repeated',
    (text) => {
      const refused = () => requireDatabaseUrl(text);
      expect(refused).toThrow(/^DATABASE_URL: .*postgres:\/\//);
      if (text.includes('secret')) expect(refused).not.toThrow(/secret/);
    },
  );

  test.each([
    'postgres://u@h/d',
    'postgresql://u:p@h:1/d',
    'postgres:///d?host=/run/pg',
    'postgres://u@/d?host=/run/pg',
  ])('%s is taken', (text) => expect(requireDatabaseUrl(text)).toBe(text));
});
