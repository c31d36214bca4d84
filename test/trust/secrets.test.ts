/** A token that is planted is found nowhere: not in logs, workflow histories, errors, the database or the process list. */
import { execFile } from 'node:child_process';
import { chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Client, Connection } from '@temporalio/client';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import { MooringClient } from '../../client/mooring-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { type RunningCommand, startCommand } from '../support/command.ts';

const ready = z.object({ api_url: z.string(), temporal_address: z.string(), token_file: z.string() });

let folder: string;
let stack: z.infer<typeof ready>;
let database: OpenDatabase;
let connection: Connection;
/** The stack; its output is all that it has written anywhere a person may look. */
let up: RunningCommand;
/** Secrets that were given to somebody. */
const planted: string[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mooring-secrets-'));
  await chmod(folder, 0o711);
  up = startCommand(
    ['up', '--json', '--require-tokens', '--sleds', '1', '--api-port', '0', '--data', join(folder, 'data')],
    {
      env: {
        DATABASE_URL: '',
        TEMPORAL_ADDRESS: '',
        MOORING_LOG_LEVEL: 'trace',
        XDG_STATE_HOME: join(folder, 'state'),
      },
    },
  );
  await waitUntil(() => up.stdout.includes('\n'), 'the stack never came up', 120_000, 50);
  stack = ready.parse(JSON.parse(up.stdout));
  planted.push((await readFile(stack.token_file, 'utf8')).trim());
  const [file] = await readdir(join(folder, 'state', 'mooring'));
  const { database_url } = z
    .object({ database_url: z.string() })
    .parse(JSON.parse(await readFile(join(folder, 'state', 'mooring', file ?? ''), 'utf8')));
  database = openDatabase(database_url, { maxConnections: 1 });
  connection = await Connection.connect({ address: stack.temporal_address });
});
afterAll(async () => {
  await database?.close();
  await connection?.close();
  await up?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** What is left of a secret when its recognisable beginning is taken away: a part would be as bad as the whole. */
const secretParts = () => planted.map((secret) => secret.replace('mooring-token-', '').slice(4, 24));

test('a planted token is in no log, no history, no error, no row and no process’s arguments', async () => {
  const admin = new MooringClient({ url: stack.api_url, token: planted[0] });
  await admin.createProject({ name: 'default', description: '' });
  const made = await admin.createToken({ name: 'planted', role: 'admin' });
  planted.push(made.token);
  const client = new MooringClient({ url: stack.api_url, token: made.token });
  const size = { hostname: 'web', description: '', ncpus: 1, memory: 2 ** 30 };
  const web = await client.createInstance({ name: 'web', ...size }, { project: 'default' });
  await waitUntil(async () => (await client.getInstance(web.id)).run_state === 'running', 'it never ran');

  const errors: string[] = [];
  const wrong = `${made.token.slice(0, -1)}${made.token.endsWith('A') ? 'B' : 'A'}`;
  planted.push(wrong);
  for (const [path, init] of [
    ['/v1/instances/nobody?project=default', {}],
    ['/v1/instances?project=default', { method: 'POST', body: '{"name":' }],
    ['/v1/nowhere', {}],
  ] as const)
    for (const authorization of [`Bearer ${made.token}`, `Bearer ${wrong}`, made.token, `Basic ${made.token}`]) {
      const response = await fetch(stack.api_url + path, {
        ...init,
        headers: { authorization, 'content-type': 'application/json' },
      });
      expect(response.status).toBeGreaterThanOrEqual(400);
      errors.push(JSON.stringify([...response.headers]), await response.text());
    }

  // A command that is given the token by its environment and its input, looked at while it runs.
  const login = startCommand(['login', stack.api_url], {
    env: { XDG_CONFIG_HOME: join(folder, 'config') },
    input: null,
  });
  const processes = async () => (await promisify(execFile)('ps', ['-eww', '-o', 'args'])).stdout;
  await waitUntil(async () => (await processes()).includes(`login ${stack.api_url}`), 'it never ran', 30_000, 20);
  const listed = await processes();
  login.child.stdin?.end(made.token);
  expect((await login.done).code).toBe(0);

  const temporal = new Client({ connection });
  const histories: string[] = [];
  for await (const { workflowId, runId } of temporal.workflow.list()) {
    const history = await temporal.workflow.getHandle(workflowId, runId).fetchHistory();
    // Payloads are bytes: looked at as the text that they hold.
    histories.push(
      JSON.stringify(history, (_, value) =>
        value instanceof Uint8Array ? Buffer.from(value).toString('utf8') : (value as unknown),
      ),
    );
  }
  expect(histories.length).toBeGreaterThan(0);
  expect(histories.join()).toContain(web.id);

  const tables = await database.db.execute(sql`SELECT tablename FROM pg_tables WHERE schemaname = 'public'`);
  const rows: string[] = [];
  for (const { tablename } of tables.rows) {
    const content = await database.db.execute(sql`SELECT t::text AS row FROM ${sql.raw(String(tablename))} t`);
    rows.push(...content.rows.map((row) => String(row.row)));
  }
  expect(rows.join()).toContain('planted');

  // It is a log that would have shown it: each request has its line.
  expect(up.output).toContain('a credential was refused');
  expect(up.output).toContain('/v1/system/access-tokens');
  for (const part of secretParts())
    for (const [where, text] of Object.entries({
      errors: errors.join(),
      'the output of the command': login.output,
      'the process list': listed,
      histories: histories.join(),
      database: rows.join(),
      'the log': up.output,
    }))
      expect(text.includes(part), `a token is in ${where}`).toBe(false);
});

test('a secret that a line is given by mistake is not written', async () => {
  const script = `
    const { createLog } = await import(${JSON.stringify(fileURLToPath(new URL('../../platform/telemetry/log.ts', import.meta.url)))});
    const log = createLog('test', 'info');
    const secret = 'mooring-token-planted';
    log.info({ token: secret, authorization: secret, made: { token: secret, secret }, req: { headers: { authorization: secret } } }, 'x');`;
  const { stderr } = await promisify(execFile)(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', script],
    {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
    },
  );
  expect(JSON.parse(stderr)).toMatchObject({ token: '[Redacted]', made: { token: '[Redacted]' } });
  expect(stderr).not.toContain('planted');
  expect(createLog('test', 'silent').level).toBe('silent');
});
