/**
 * What the environment sets: every variable that Mooring reads, and what it may hold. `TEMPORAL_*` is read by the Temporal SDK's own
 * configuration (temporal/connection.ts), `XDG_*` and `PATH` by whoever needs them.
 */
import { z } from 'zod';
import { refuseToListen } from '../model/host-address.ts';

const text = z.string();
const onOff = z.enum(['on', 'off'], 'one of "on" and "off" is needed');
const days = z.coerce.number('a number of days is needed').positive('a number of days above 0 is needed');
const listenAddress = text.refine(
  (value) => refuseToListen(value) === null,
  'an address to listen on is needed, for example 0.0.0.0:9464',
);
const httpUrl = z.url({ protocol: /^https?$/, error: 'a URL is needed, for example http://collector:4318' });
/** Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS */
const postgresUrl = text.refine(
  isPostgresUrl,
  'this is not the URL of a PostgreSQL; it begins with postgres://, for example postgres://user@host/mooring',
);

const SETTINGS = {
  DATABASE_URL: postgresUrl,
  MOORING_MIGRATE_DATABASE_URL: postgresUrl,
  MOORING_PREPARED_STATEMENTS: onOff,
  MOORING_TEMPORAL_BINARY: text,
  MOORING_QEMU_BINARY: text,
  MOORING_CACHE: text,
  MOORING_OFFLINE: text.transform((value) => !['0', 'false', 'off', 'no'].includes(value.toLowerCase())),
  MOORING_BUILD_ID: text.max(200, 'at most 200 characters are possible'),
  MOORING_WORKER_VERSIONING: onOff,
  MOORING_METRICS_LISTEN: listenAddress,
  MOORING_LOG_LEVEL: z.enum(
    ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    'one of trace, debug, info, warn, error, fatal and silent is needed',
  ),
  MOORING_API_LISTEN: listenAddress,
  MOORING_AUTHORITY: text,
  MOORING_SLED_LISTEN: listenAddress,
  MOORING_SLED_URL: z.url({ protocol: /^https$/, error: 'a URL is needed, for example https://mooring.example:12221' }),
  MOORING_API_AUTHENTICATION: z.enum(['tokens', 'open'], 'one of "tokens" and "open" is needed'),
  MOORING_HOSTS: text,
  MOORING_API_TLS_CERT: text,
  MOORING_API_TLS_KEY: text,
  MOORING_API_REQUESTS_PER_MINUTE: z.coerce
    .number('a whole number is needed; 0 is unlimited')
    .int('a whole number is needed')
    .nonnegative('a whole number is needed; 0 is unlimited'),
  MOORING_AUDIT_DAYS: days,
  MOORING_RETENTION_DAYS: days.min(1, 'a number of days, at least 1, is needed'),
  MOORING_API_URL: text,
  MOORING_PROJECT: text,
  MOORING_TOKEN: text.transform((value) => value.trim()),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl,
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: httpUrl,
  OTEL_SERVICE_NAME: text,
  OTEL_SDK_DISABLED: text.transform((value) => value.toLowerCase() === 'true'),
} as const satisfies Record<string, z.ZodType>;

export type SettingName = keyof typeof SETTINGS;
/** The names of all settings. */
export const SETTING_NAMES = Object.keys(SETTINGS) as readonly SettingName[];

/** Their values are shown nowhere, not even where they are wrong. */
const SECRET: readonly SettingName[] = ['DATABASE_URL', 'MOORING_MIGRATE_DATABASE_URL', 'MOORING_TOKEN'];
/** Judged where they are used: a command has to do with one of them, and the other is none of its business. */
const JUDGED_WHERE_USED: readonly SettingName[] = ['DATABASE_URL', 'MOORING_MIGRATE_DATABASE_URL'];
/** Tests' own, and what Kubernetes sets for services whose name begins with `mooring`. */
const NOT_OURS = /^MOORING_TEST_|_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP)(_\w+)?)?$/;

/** A setting; `undefined` where it is not set, or empty. Throws, with its name and what is needed, where it can't be used. */
export function setting<Name extends SettingName>(
  name: Name,
  env: NodeJS.ProcessEnv = process.env,
): z.output<(typeof SETTINGS)[Name]> | undefined {
  const value = env[name];
  if (value === undefined || value === '') return undefined;
  const read = SETTINGS[name].safeParse(value);
  if (read.success) return read.data as z.output<(typeof SETTINGS)[Name]>;
  const why = read.error.issues[0]?.message;
  throw new Error(SECRET.includes(name) ? `${name}: ${why}` : `${name}: "${value}" can't be used: ${why}`);
}

/**
 * Reads every setting, but the databases', before anything is begun by one. Throws, with a sentence for each, where some can't be used. Returns a sentence
 * for each variable that looks like a setting and is none.
 */
export function checkSettings(env: NodeJS.ProcessEnv = process.env): string[] {
  const wrong = SETTING_NAMES.filter((name) => !JUDGED_WHERE_USED.includes(name)).flatMap((name) => {
    try {
      setting(name, env);
      return [];
    } catch (error) {
      return [(error as Error).message];
    }
  });
  if (wrong.length > 0) throw new Error(wrong.join('; '));
  return Object.keys(env)
    .filter((name) => name.startsWith('MOORING_') && !NOT_OURS.test(name) && !(name in SETTINGS))
    .map((name) => `${name} is set, and read by nothing: is it spelled right?`);
}

/** Whether a text leads to a PostgreSQL: by a URL, or by a socket of this machine. */
export function isPostgresUrl(url: string): boolean {
  if (url.startsWith('/')) return true;
  // Without a host it means a socket of this machine, which JavaScript's URLs don't know with a user before it.
  const whole = url.replace('@/', '@localhost/');
  return URL.canParse(whole) && ['postgres:', 'postgresql:', 'socket:'].includes(new URL(whole).protocol);
}
