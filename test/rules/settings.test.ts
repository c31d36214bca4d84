/** The environment: every setting is read by one schema, is documented, and is named by what refuses it. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { metricsAddress } from '../../cli/processes.ts';
import { checkSettings, SETTING_NAMES, type SettingName, setting } from '../../platform/settings.ts';
import { runCommand } from '../support/command.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

const WRONG: readonly [SettingName, string, RegExp][] = [
  ['DATABASE_URL', 'mysql://me:hush@host/x', /begins with postgres:\/\//],
  ['MOORING_MIGRATE_DATABASE_URL', 'hush', /begins with postgres:\/\//],
  ['MOORING_PREPARED_STATEMENTS', 'no', /"on" and "off"/],
  ['MOORING_BUILD_ID', 'x'.repeat(201), /200 characters/],
  ['MOORING_WORKER_VERSIONING', 'maybe', /"on" and "off"/],
  ['MOORING_API_LISTEN', 'foo', /address to listen on/],
  ['MOORING_METRICS_LISTEN', 'foo', /address to listen on/],
  ['MOORING_METRICS_LISTEN', '0.0.0.0:99999', /address to listen on/],
  ['MOORING_METRICS_LISTEN', '[::]', /address to listen on/],
  ['MOORING_LOG_LEVEL', 'loud', /trace, debug, info/],
  ['MOORING_SLED_LISTEN', ':12221', /address to listen on/],
  ['MOORING_SLED_URL', 'http://sleds.example', /https:\/\//],
  ['MOORING_API_AUTHENTICATION', 'none', /"tokens" and "open"/],
  ['MOORING_API_REQUESTS_PER_MINUTE', '-1', /whole number/],
  ['MOORING_API_REQUESTS_PER_MINUTE', '1.5', /whole number/],
  ['MOORING_AUDIT_DAYS', '0', /above 0/],
  ['MOORING_RETENTION_DAYS', '0.5', /at least 1/],
  ['OTEL_EXPORTER_OTLP_ENDPOINT', 'collector', /a URL is needed/],
  ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT', 'grpc://collector', /a URL is needed/],
];

test.each(WRONG)('%s=%s is refused, by its name, and no secret is shown', (name, value, why) => {
  const refused = () => setting(name, { [name]: value });
  expect(refused).toThrow(new RegExp(`^${name}: `));
  expect(refused).toThrow(why);
  expect(refused).not.toThrow(/hush/);
  const check = () => checkSettings({ [name]: value, PATH: '/bin' });
  if (name.endsWith('DATABASE_URL')) expect(check()).toEqual([]);
  else expect(check).toThrow(why);
});

test.each(['0.0.0.0:9464', '[::]:9464', '127.0.0.1:0', '10.0.0.7:9464', '[2001:db8::7]:9464', 'metrics.example:9464'])(
  '%s is an address to listen on',
  (address) => {
    for (const name of ['MOORING_API_LISTEN', 'MOORING_METRICS_LISTEN', 'MOORING_SLED_LISTEN'] as const)
      expect(setting(name, { [name]: address })).toBe(address);
    expect(metricsAddress(address)).toHaveLength(1);
  },
);

test('what the pages and the deployment set can be set', async () => {
  const pattern = '(MOORING|OTEL)_[A-Z_]+=[^ "`,;|)$]+';
  const { stdout } = await promisify(execFile)('grep', ['-rhoE', pattern, 'docs', 'deploy', 'README.md'], {
    cwd: ROOT,
  });
  const given = stdout
    .split('\n')
    .map((line) => /^([A-Z_]+)=(.+)$/.exec(line.trim()))
    .flatMap((found) => (found === null ? [] : [[found[1] as SettingName, found[2] ?? ''] as const]))
    .filter(([name, value]) => SETTING_NAMES.includes(name) && !/[…{]/.test(value));
  expect(given.length).toBeGreaterThan(5);
  for (const [name, value] of given) expect(() => setting(name, { [name]: value }), `${name}=${value}`).not.toThrow();
});

test('all that is wrong is said at once', () => {
  const wrong = { MOORING_LOG_LEVEL: 'loud', MOORING_METRICS_LISTEN: 'foo' };
  expect(() => checkSettings(wrong)).toThrow(/MOORING_METRICS_LISTEN: .*; MOORING_LOG_LEVEL: /);
});

test('what is not set, or empty, is not set', () => {
  for (const name of SETTING_NAMES) {
    expect(setting(name, {})).toBeUndefined();
    expect(setting(name, { [name]: '' })).toBeUndefined();
  }
  expect(checkSettings({})).toEqual([]);
});

test('what looks like a setting and is none is named; what tests and Kubernetes set is not', () => {
  expect(checkSettings({ MOORING_SLED_LISEN: '0.0.0.0:1', MOORING_TEST_CLOCK: 'x' })).toEqual([
    expect.stringContaining('MOORING_SLED_LISEN is set, and read by nothing'),
  ]);
  const links = {
    MOORING_API_SERVICE_HOST: '10.0.0.1',
    MOORING_API_PORT: 'tcp://10.0.0.1:1',
    MOORING_API_PORT_1_TCP: 'x',
  };
  expect(checkSettings({ ...links, MOORING_API_PORT_1_TCP_ADDR: '10.0.0.1' })).toEqual([]);
});

test.each([
  ['0', false],
  ['false', false],
  ['1', true],
  ['yes', true],
])('MOORING_OFFLINE=%s is %s', (value, offline) => {
  expect(setting('MOORING_OFFLINE', { MOORING_OFFLINE: value })).toBe(offline);
});

test('the README has every setting', async () => {
  const readme = await readFile(join(ROOT, 'README.md'), 'utf8');
  expect(SETTING_NAMES.filter((name) => !readme.includes(`\`${name}`))).toEqual([]);
});

test('nobody else reads one', async () => {
  const rooms = ['activities', 'api', 'cli', 'client', 'db', 'doctor', 'model', 'platform', 'sled-agent'];
  const { stdout } = await promisify(execFile)(
    'git',
    [
      'grep',
      '-nE',
      'env\\.(MOORING|DATABASE|OTEL)_',
      '--',
      ...rooms,
      'stack',
      'temporal',
      'wire',
      'worker',
      'workflows',
    ],
    { cwd: ROOT },
  ).catch((error: { stdout: string }) => error);
  expect(stdout).toBe('');
});

describe('a command says it in one line, and ends with 1, before it has opened anything', () => {
  test.each([
    [['worker'], { MOORING_LOG_LEVEL: 'loud' }, /^error: MOORING_LOG_LEVEL: "loud" can't be used/],
    [['api'], { MOORING_METRICS_LISTEN: 'foo' }, /^error: MOORING_METRICS_LISTEN: "foo" can't be used/],
    [['up'], { MOORING_WORKER_VERSIONING: 'maybe' }, /^error: MOORING_WORKER_VERSIONING: "maybe" can't be used/],
  ] as const)('mooring %s with %o', async (args, env, said) => {
    const { code, stdout, stderr } = await runCommand([...args], { env });
    expect([code, stdout, stderr.trim().split('\n').length]).toEqual([1, '', 1]);
    expect(stderr).toMatch(said);
  });
});
