/** What a command says that can't reach what it needs: which of it, where it looked, and what names it. Never a secret. */
import { createServer, type Server } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_WAIT_MS } from '../../api/server.ts';
import { readApiUrl } from '../../cli/context.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { runCommand } from '../support/command.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

let database: TestDatabase;
let plain: Server;
let plainAddress: string;
beforeAll(async () => {
  database = await startTestDatabase();
  plain = createServer((_, response) => response.end('{"items":[],"next_page":null}'));
  await new Promise<void>((resolve) => plain.listen(0, '127.0.0.1', resolve));
  const bound = plain.address();
  plainAddress = `127.0.0.1:${typeof bound === 'object' && bound !== null ? bound.port : 0}`;
});
afterAll(async () => {
  plain?.closeAllConnections();
  plain?.close();
  await database?.stop();
});

const NOBODY = '127.0.0.1:1';
const nothing = { DATABASE_URL: '', TEMPORAL_ADDRESS: '', MOORING_MIGRATE_DATABASE_URL: '', MOORING_API_URL: '' };
const reached = () => ({ DATABASE_URL: database.url, TEMPORAL_ADDRESS: NOBODY });

describe('a process ends with a message', () => {
  test.each<[string, string[], () => NodeJS.ProcessEnv, RegExp]>([
    ['no URL', ['worker'], () => ({}), /DATABASE_URL is not set/],
    ['no URL to migrate', ['migrate'], () => ({}), /--database-url, MOORING_MIGRATE_DATABASE_URL or DATABASE_URL/],
    ['nonsense', ['api'], () => ({ DATABASE_URL: 'nonsense' }), /DATABASE_URL: this is not the URL of a PostgreSQL/],
    [
      'nonsense to migrate',
      ['migrate', '--database-url', 'nonsense'],
      () => ({}),
      /--database-url: this is not the URL of a PostgreSQL/,
    ],
    [
      'a PostgreSQL that is away',
      ['worker'],
      () => ({ DATABASE_URL: `postgres://x:secret@${NOBODY}/z` }),
      /PostgreSQL at 127\.0\.0\.1:1\/z \(DATABASE_URL\) can't be reached: connect ECONNREFUSED/,
    ],
    [
      'a PostgreSQL that is away, and not to be migrated',
      ['api', '--port', '0', '--no-migrate'],
      () => ({ DATABASE_URL: `postgres://x:secret@${NOBODY}/z` }),
      /PostgreSQL at 127\.0\.0\.1:1\/z \(DATABASE_URL\) can't be reached: connect ECONNREFUSED/,
    ],
    [
      'a Temporal that is away',
      ['deployment', 'list'],
      reached,
      /Temporal at 127\.0\.0\.1:1 can't be used .*TEMPORAL_ADDRESS/,
    ],
    ['too long a wait', ['api', '--wait', '91'], reached, /--wait.*a number of seconds from 0 to 90/],
    [
      'no URL of an API',
      ['project', 'list', '--api-url', 'ftp://x'],
      () => ({}),
      /--api-url \(or MOORING_API_URL\): "ftp/,
    ],
    [
      'TLS where there is none',
      ['project', 'list', '--api-url'],
      () => ({}),
      /speaks no TLS: name it with http:\/\/ \(--api-url or MOORING_API_URL\)/,
    ],
  ])('%s', async (_, args, env, message) => {
    const all = args.at(-1) === '--api-url' ? [...args, `https://${plainAddress}`] : args;
    const run = await runCommand(all, { env: { ...nothing, ...env() } });
    expect(run.code).toBe(1);
    expect(run.stderr).toMatch(message);
    expect(
      run.stderr
        .trim()
        .split('\n')
        .filter((line) => !line.includes('--help')),
    ).toHaveLength(1);
    expect(run.stdout + run.stderr).not.toContain('secret');
  });
});

test('the schema is brought up to date by a command of its own, and the second time there is nothing to do', async () => {
  const run = await runCommand(['migrate', '--json'], {
    env: { ...nothing, DATABASE_URL: 'nonsense', MOORING_MIGRATE_DATABASE_URL: database.url },
  });
  expect(run).toMatchObject({ code: 0, stderr: '' });
  expect(JSON.parse(run.stdout)).toEqual({ applied: [] });
});

test('an API’s address without a scheme is taken for http', async () => {
  expect(readApiUrl('localhost:12220')).toBe('http://localhost:12220');
  expect(readApiUrl('https://mooring.example')).toBe('https://mooring.example');
  const client = new MooringClient({ url: readApiUrl(plainAddress) });
  for await (const _ of client.listProjects()) expect.fail('there is none');
});

test('a call waits for less than any usual proxy does', () => {
  expect(DEFAULT_WAIT_MS).toBeLessThan(30_000);
});
