/**
 * Every setting that this PostgreSQL lets a role or a database have for a default, by its worst values: it does not matter, or
 * it is named as a process starts. What a later version adds is tried without being written down here.
 */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkSessions } from '../../db/check-sessions.ts';
import { type OpenDatabase, openDatabase, pingDatabase } from '../../db/connect.ts';
import { databaseError } from '../../db/errors.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { AWKWARD_TEXT, makeAwkwardInstance } from '../support/awkward-instance.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { MIGRATION_NAMES } from '../support/migrations.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
  await database.addSled({ threads: 100_000, memoryBytes: 2 ** 50 });
});
afterAll(() => database?.stop());

/** What is obeyed, or is nothing of a session's: why, by setting. */
const LEFT: Readonly<Record<string, string>> = {
  default_transaction_read_only: 'obeyed: 503, and by name (sessions.test.ts)',
  transaction_read_only: 'counts for one transaction alone',
  role: 'whose rights count is the operator’s to say',
  session_authorization: 'the same',
  application_name: 'each process has its own',
  tcp_user_timeout: 'how long an unheard connection lives is the operator’s to say',
};

/** What is named as a process starts, since without a superuser nobody can set it. */
const NAMED: Readonly<Record<string, readonly string[]>> = {
  session_replication_role: ['replica'],
  temp_file_limit: ['0', '64'],
  max_stack_depth: ['100'],
  zero_damaged_pages: ['on'],
  ignore_checksum_failure: ['on'],
};

interface Setting {
  readonly name: string;
  readonly vartype: string;
  readonly context: string;
  readonly setting: string;
  readonly min_val: string | null;
  readonly max_val: string | null;
  readonly enumvals: readonly string[] | null;
}

const worstOfEach = (setting: Setting) => worstOf(setting).map((value): Default => [setting.name, value]);

function inChunks(defaults: readonly Default[]): Default[][] {
  return Array.from({ length: Math.ceil(defaults.length / 12) }, (_, at) => defaults.slice(at * 12, at * 12 + 12));
}

/** The values of a setting that are furthest from what it has. */
function worstOf({ vartype, setting, min_val, max_val, enumvals, name }: Setting): string[] {
  switch (vartype) {
    case 'bool':
      return [setting === 'on' ? 'off' : 'on'];
    case 'enum':
      return (enumvals ?? []).filter((value) => value !== setting && value !== 'pglz' && value !== 'lz4');
    case 'integer':
    case 'real':
      // What nothing could be done with is refused by PostgreSQL; the greatest memory it would try to have.
      return [...new Set([min_val ?? '0', ...(/mem|buffers/.test(name) ? [] : [max_val ?? '1'])])];
    default:
      return [...(STRINGS[name] ?? [])];
  }
}

const STRINGS: Readonly<Record<string, readonly string[]>> = {
  client_encoding: ['LATIN1'],
  DateStyle: ['German', 'SQL, DMY'],
  TimeZone: ['Asia/Kathmandu'],
  search_path: ['pg_catalog', ''],
  restrict_nonsystem_relation_kind: ['view, foreign-table'],
  timezone_abbreviations: ['India', 'Australia'],
  default_text_search_config: ['german'],
  temp_tablespaces: [''],
  'plpgsql.extra_errors': ['all'],
  'plpgsql.extra_warnings': ['all'],
};

type Default = readonly [name: string, value: string];
const written = ([name, value]: Default) => `${name} = ${value}`;

/** Has a role with these defaults, without a superuser's rights, and opens a pool by it. */
async function withDefaults<Result>(
  defaults: readonly Default[],
  work: (through: OpenDatabase, url: string) => Promise<Result>,
): Promise<Result> {
  const role = `r${randomUUID().slice(0, 8)}`;
  await database.db.execute(
    sql.raw(`CREATE ROLE ${role} LOGIN PASSWORD 'word';
      GRANT USAGE ON SCHEMA public, drizzle, doctor TO ${role};
      GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, drizzle, doctor TO ${role};
      GRANT USAGE ON ALL SEQUENCES IN SCHEMA public, drizzle, doctor TO ${role}`),
  );
  // What PostgreSQL doesn't take is nobody's default.
  for (const [name, value] of defaults)
    await database.db.execute(sql.raw(`ALTER ROLE ${role} SET ${name} = '${value}'`)).catch((error: Error) => {
      if (!['22023', '42501', '0A000', '25001'].includes(databaseError(error)?.code ?? '')) throw error;
    });
  const url = new URL(database.url);
  url.username = role;
  url.password = 'word';
  const through = openDatabase(url.href, { maxConnections: 2, applicationName: 'defaults' });
  try {
    return await work(through, url.href);
  } finally {
    await through.close();
  }
}

/** What is wrong with a process whose sessions have these defaults; `null` where nothing is. */
async function faultOf(defaults: readonly Default[]): Promise<string | null> {
  const fault = await withDefaults(defaults, async (through, url) => {
    await checkSessions(through, url, (message) => {
      throw new Error(message);
    });
    await worksWell(through);
    await migrateDatabase(url);
    return null;
  }).catch((error: Error) => `${error.message.split('\n')[0]} ${(error.cause as Error | undefined)?.message ?? ''}`);
  return fault && `${defaults.map(written).join(', ')}: ${fault}`;
}

/** Writes and reads over `through`, for longer than the shortest limit, and holds it against what is so. */
async function worksWell(through: OpenDatabase): Promise<void> {
  const { name, instanceId } = await makeAwkwardInstance(through.db);
  // A refusal is one, and ends nothing.
  await expect(createProject(through.db, { name, description: '' })).rejects.toThrow(/already/);
  const claim = {
    instanceId,
    vmmId: randomUUID(),
    operationId: randomUUID(),
    workflowId: 'w',
    reason: 'user' as const,
  };
  expect(await claimStart(through.db, claim)).toBeTruthy();
  const charged = await through.db.transaction(async (open) => {
    await open.execute(sql`SELECT pg_sleep(0.03)`);
    const { rows } = await open.execute<{ charged: number; description: string; created: string }>(
      sql`SELECT instance.description, instance.time_created AS created, charged_cpus AS charged
          FROM instance JOIN project ON project.id = project_id WHERE instance.id = ${instanceId}`,
    );
    return rows[0];
  });
  expect(charged).toMatchObject({ description: AWKWARD_TEXT });
  // A trigger has kept the sum.
  expect(Number(charged?.charged)).toBe(2);
  expect(Math.abs(new Date(charged?.created ?? '').getTime() - Date.now())).toBeLessThan(60_000);
  await pingDatabase(through.db);
}

describe('every default that a role can have', () => {
  test('does not matter, or is named', async () => {
    const { rows } = await database.db.execute(
      sql`SELECT name, vartype, context, setting, min_val, max_val, enumvals FROM pg_settings
          WHERE context IN ('user', 'superuser') ORDER BY name`,
    );
    const settings = rows as unknown as Setting[];
    expect(settings.length).toBeGreaterThan(150);
    const values = settings.filter(({ name }) => !(name in LEFT) && !(name in NAMED)).map(worstOfEach);
    const faults: string[] = [];
    // Many at once; where that fails, each of them alone, to name it.
    for (let place = 0; place < Math.max(...values.map((each) => each.length)); place++)
      for (const chunk of inChunks(values.flatMap((each) => each.slice(place, place + 1)))) {
        if ((await faultOf(chunk)) === null) continue;
        const alone: string[] = [];
        for (const one of chunk) alone.push(...[await faultOf([one])].filter((fault) => fault !== null));
        faults.push(...(alone.length > 0 ? alone : [`only together: ${await faultOf(chunk)}`]));
      }
    expect(faults).toEqual([]);
  });

  test.each(Object.entries(NAMED).flatMap(([name, values]) => values.map((value) => [name, value] as const)))(
    '%s = %s is named, for only a superuser can set it',
    async (name, value) => {
      const said: string[] = [];
      await withDefaults([[name, value]], (through, url) =>
        checkSessions(through, url, (message) => said.push(message)).catch((error: Error) => said.push(error.message)),
      );
      expect(said).toEqual([expect.stringContaining(`${name} is "${value}"`)]);
    },
  );

  test('nor do triggers stop running for a superuser', async () => {
    const through = openDatabase(database.url, { maxConnections: 1 });
    await database.db.execute(sql`ALTER ROLE mooring SET session_replication_role = 'replica'`);
    try {
      await checkSessions(through, database.url, (message) => expect.fail(message));
      await worksWell(through);
    } finally {
      await database.db.execute(sql`ALTER ROLE mooring RESET session_replication_role`);
      await through.close();
    }
  });

  test.each(['1', '5', '20', '300'])(
    'transaction_timeout of %s ms ends no migration and no transaction',
    async (value) => {
      const name = `limited_${randomUUID().slice(0, 8)}`;
      await database.db.execute(sql.raw(`CREATE DATABASE ${name} TEMPLATE template0`));
      await database.db.execute(sql.raw(`ALTER DATABASE ${name} SET transaction_timeout = ${value}`));
      const url = new URL(database.url);
      url.pathname = `/${name}`;
      expect(await migrateDatabase(url.href)).toEqual(MIGRATION_NAMES);
      const through = openDatabase(url.href, { maxConnections: 3 });
      try {
        await through.db.transaction(async (open) => {
          await open.execute(sql`SELECT pg_sleep(0.4)`);
        });
        await through.db.execute(sql`SELECT pg_sleep(0.4)`);
      } finally {
        await through.close();
      }
    },
  );
});
