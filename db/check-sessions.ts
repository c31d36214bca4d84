import type pg from 'pg';
import { z } from 'zod';
import { setting } from '../platform/settings.ts';
import type { OpenDatabase } from './connect.ts';
import { NEEDED_SETTINGS, STATEMENT_TIMEOUT_MS, wantedSettings } from './database-client.ts';
import { databaseTrouble } from './errors.ts';
import { unreachable } from './unreachable.ts';

const found = z.object({
  name: z.string(),
  setting: z.string(),
  role: z.string(),
  pid: z.number(),
  hasTables: z.boolean(),
  fsync: z.string(),
});
type Setting = z.infer<typeof found> & {
  /** Whether nobody is between: a session has what it asked for. */
  readonly isDirect: boolean;
};

/** What only a superuser may set, by name: what PostgreSQL then does to statements, and for which values. */
const SUPERUSERS: Readonly<Record<string, { readonly isBad: (setting: string) => boolean; readonly does: string }>> = {
  temp_file_limit: {
    // In kB; -1 is none.
    isBad: (setting) => Number(setting) >= 0 && Number(setting) < 1_048_576,
    does: 'statements that sort much end with 53400',
  },
  max_stack_depth: {
    isBad: (setting) => Number(setting) < 1_024,
    does: 'statements that are nested deep end with 54001',
  },
  zero_damaged_pages: { isBad: (setting) => setting === 'on', does: 'rows of damaged pages are lost in silence' },
  ignore_checksum_failure: { isBad: (setting) => setting === 'on', does: 'damaged pages are read as they are' },
};

/** Names what can't be asked for without the rights of a superuser, and is otherwise than we need it. */
function warnOfRefusals(settings: readonly Setting[], warn: (message: string) => void): void {
  const bad = settings.flatMap(({ name, setting, role }) =>
    SUPERUSERS[name]?.isBad(setting) ? [{ name, setting, role, does: SUPERUSERS[name].does }] : [],
  );
  if (bad.length === 0) return;
  const what = bad.map(({ name, setting, does }) => `${name} is "${setting}": ${does}`).join('; ');
  const mend = bad.map(({ name, role }) => `ALTER ROLE "${role}" RESET ${name};`).join(' ');
  warn(`PostgreSQL (DATABASE_URL) has settings that only a superuser may change: ${what}. Let one reset them: ${mend}`);
}

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
  warnOfRefusals(settings, warn);
  const wrong = settings.flatMap(({ name, setting, role, hasTables, fsync, isDirect }) => {
    // A session that nobody is between has what it asked for, but for what only a superuser may ask for.
    const want = isDirect && name !== 'session_replication_role' ? undefined : wanted.get(name.toLowerCase());
    // Tables in another schema are somebody's wish; tables that are not found are not.
    const isRight =
      want === undefined || (name === 'search_path' ? hasTables : holds(want.name, setting, want.value, fsync));
    return isRight ? [] : [{ ...want, setting, role, isDirect }];
  });
  const needed = wrong.filter(({ name }) => NEEDED_SETTINGS.includes(name));
  if (needed.length > 0)
    throw new Error(
      `${needed.some(({ isDirect }) => isDirect) ? `PostgreSQL (DATABASE_URL) lets this role not set what triggers need to run` : `a pooler before PostgreSQL (DATABASE_URL) does not pass on what values need to be read right`}: ${needed
        .map(({ name, setting }) => `${name} is "${setting}"`)
        .join(', ')}. Give the role its own: ${statements(needed)}`,
    );
  if (wrong.length > 0)
    warn(
      `a pooler before PostgreSQL (DATABASE_URL) takes no settings; transactions bring their own, single statements can't, and go by these: ${wrong
        .map(({ name, setting }) => `${name} is "${setting}"`)
        .join(', ')}. Give the role its own: ${statements(wrong)}`,
    );
  if (!peer.keepsStatements && setting('MOORING_PREPARED_STATEMENTS') !== 'off')
    warn(
      'the pooler before PostgreSQL (DATABASE_URL) loses prepared statements: each is parsed again, at twice the cost; PgBouncer 1.21 or later with max_prepared_statements above 0 keeps them',
    );
}

const PROBE = 'SELECT $1::int AS probe';
/** How many connections of a pool try what a pooler keeps, and how often each: more than a pooler can keep apart. */
const PROBES = 3;

/**
 * The settings of a session, and tries whether prepared statements survive a pooler, where one is between.
 */
async function readSettings(pool: pg.Pool): Promise<Setting[]> {
  const client = await pool.connect();
  const others: pg.PoolClient[] = [];
  try {
    const { rows } = await client.query(
      `SELECT name, setting, current_user AS role, pg_backend_pid() AS pid,
         to_regclass('lease_service') IS NOT NULL AS "hasTables", current_setting('fsync') AS fsync FROM pg_settings`,
    );
    // A pooler gives its clients numbers of its own.
    const isDirect = rows[0]?.pid === (client as unknown as { processID?: unknown }).processID;
    const settings = z
      .array(found)
      .parse(rows)
      .map((setting) => ({ ...setting, isDirect }));
    if (isDirect) return settings;
    while (others.length < Math.min(PROBES, (pool.options.max ?? 1) - 1)) others.push(await pool.connect());
    for (let round = 0; round < PROBES; round++)
      for (const each of [client, ...others]) await each.query({ text: PROBE }, [round]);
    return settings;
  } finally {
    for (const each of [client, ...others]) each.release();
  }
}

/** Whether a setting, as `pg_settings` has it, does what is wanted. */
function holds(name: string, setting: string, wanted: string, fsync: string): boolean {
  switch (name) {
    case 'DateStyle':
      return setting.startsWith('ISO');
    // 0 is no limit; a shorter one than ours only refuses sooner.
    case 'statement_timeout':
    case 'idle_in_transaction_session_timeout':
      return Number(setting) > 0 && Number(setting) <= Number(wanted);
    // In milliseconds, as what a statement alone has anyway.
    case 'transaction_timeout':
      return Number(setting) === 0 || Number(setting) >= STATEMENT_TIMEOUT_MS;
    case 'synchronous_commit':
      return setting !== 'off' || fsync === 'off';
    case 'session_replication_role':
      return setting !== 'replica';
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
