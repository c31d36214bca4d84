import type pg from 'pg';
import { z } from 'zod';
import type { OpenDatabase } from './connect.ts';
import { NEEDED_SETTINGS, wantedSettings } from './database-client.ts';
import { databaseTrouble } from './errors.ts';
import { unreachable } from './unreachable.ts';

const found = z.object({
  name: z.string(),
  setting: z.string(),
  role: z.string(),
  pid: z.number(),
  hasTables: z.boolean(),
});

/**
 * Checks, as a process starts, that what it needs of its sessions holds: a pooler in transaction mode takes no settings, and
 * what the role or the database has for defaults counts then. What keeps values from being read right is thrown, with what to
 * do; what only bounds how long a statement may take is told to `warn`, likewise, and that PostgreSQL, at `url`, can't be
 * reached: a process comes up without it, and is not ready.
 */
export async function checkSessions(
  { pool, peer }: Pick<OpenDatabase, 'pool' | 'peer'>,
  url: string,
  warn: (message: string) => void,
): Promise<void> {
  const wanted = new Map(
    Object.entries(wantedSettings()).map(([name, value]) => [name.toLowerCase(), { name, value }]),
  );
  const settings = await readSettings(pool).catch((error: unknown) => {
    if (databaseTrouble(error) === null) throw error;
    warn(`the settings of sessions could not be checked: ${unreachable(url, error).message}`);
    return [];
  });
  const wrong = settings.flatMap(({ name, setting, role, hasTables }) => {
    const want = wanted.get(name.toLowerCase());
    // Tables in another schema are somebody's wish; tables that are not found are not.
    const isRight = want === undefined || (name === 'search_path' ? hasTables : holds(want.name, setting, want.value));
    return isRight ? [] : [{ ...want, setting, role }];
  });
  const needed = wrong.filter(({ name }) => NEEDED_SETTINGS.includes(name));
  if (needed.length > 0)
    throw new Error(
      `a pooler before PostgreSQL (DATABASE_URL) does not pass on what values need to be read right: ${needed
        .map(({ name, setting }) => `${name} is "${setting}"`)
        .join(', ')}. Give the role its own: ${statements(needed)}`,
    );
  if (wrong.length > 0)
    warn(
      `a pooler before PostgreSQL (DATABASE_URL) takes no settings; transactions bring their own, single statements can't, and go by these: ${wrong
        .map(({ name, setting }) => `${name} is "${setting}"`)
        .join(', ')}. Give the role its own: ${statements(wrong)}`,
    );
  if (!peer.keepsStatements && process.env.MOORING_PREPARED_STATEMENTS !== 'off')
    warn(
      'the pooler before PostgreSQL (DATABASE_URL) loses prepared statements: each is parsed again, at twice the cost; PgBouncer 1.21 or later with max_prepared_statements above 0 keeps them',
    );
}

const PROBE = 'SELECT $1::int AS probe';
/** How many connections of a pool try what a pooler keeps, and how often each: more than a pooler can keep apart. */
const PROBES = 3;

/**
 * The settings of a session by way of a pooler, and tries whether prepared statements survive it. Nothing where none is between:
 * then each session has what it asked for.
 */
async function readSettings(pool: pg.Pool): Promise<z.infer<typeof found>[]> {
  const client = await pool.connect();
  const others: pg.PoolClient[] = [];
  try {
    const { rows } = await client.query(
      `SELECT name, setting, current_user AS role, pg_backend_pid() AS pid,
         to_regclass('lease_service') IS NOT NULL AS "hasTables" FROM pg_settings`,
    );
    const settings = z.array(found).parse(rows);
    // A pooler gives its clients numbers of its own.
    const isDirect = settings[0]?.pid === (client as unknown as { processID?: unknown }).processID;
    if (isDirect) return [];
    while (others.length < Math.min(PROBES, (pool.options.max ?? 1) - 1)) others.push(await pool.connect());
    for (let round = 0; round < PROBES; round++)
      for (const each of [client, ...others]) await each.query({ text: PROBE }, [round]);
    return settings;
  } finally {
    for (const each of [client, ...others]) each.release();
  }
}

/** Whether a setting, as `pg_settings` has it, does what is wanted. */
function holds(name: string, setting: string, wanted: string): boolean {
  switch (name) {
    case 'DateStyle':
      return setting.startsWith('ISO');
    // 0 is no limit; a shorter one than ours only refuses sooner.
    case 'statement_timeout':
    case 'idle_in_transaction_session_timeout':
      return Number(setting) > 0 && Number(setting) <= Number(wanted);
    case 'extra_float_digits':
      return Number(setting) >= 1;
    default:
      return setting.toLowerCase() === wanted.toLowerCase();
  }
}

function statements(wrong: readonly { name: string; value: string; role: string }[]): string {
  return wrong
    .map(
      ({ name, value, role }) => `ALTER ROLE "${role}" SET ${name} = ${name === 'search_path' ? value : `'${value}'`};`,
    )
    .join(' ');
}
