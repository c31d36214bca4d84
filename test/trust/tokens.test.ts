/** Bearer tokens on a real stack that asks for them: who is let in, who isn't, and what the newcomer notices of it: nothing. */

import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { checkListening } from '../../api/limits.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { hashTokenSecret, makeTokenSecret } from '../../db/access-token-secret.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';
import { runCommand, startCommand } from '../support/command.ts';

let home: string;
let stack: RunningStack;
let database: OpenDatabase;
let admin: MooringClient;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'mooring-home-'));
  stack = await startStack({
    sleds: 1,
    reconcileEveryMs: 0,
    requireTokens: true,
    env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: '', XDG_STATE_HOME: home },
  });
  database = openDatabase(stack.databaseUrl, { maxConnections: 2 });
  admin = new MooringClient({ url: stack.apiUrl, token: stack.adminToken.secret });
  await admin.createProject({ name: 'default', description: '' });
});
afterAll(async () => {
  await database?.close();
  await stack?.stop();
  await rm(home, { recursive: true, force: true });
});

async function get(path: string, authorization?: string) {
  const response = await fetch(stack.apiUrl + path, { headers: authorization === undefined ? {} : { authorization } });
  return {
    status: response.status,
    challenge: response.headers.get('www-authenticate'),
    body: (await response.json()) as { error_code: string; message: string; request_id: string },
  };
}

/** Runs the command in a home of its own; `input` is what is piped to it. */
const mooring = (args: string[], options: { env?: NodeJS.ProcessEnv; input?: string } = {}) =>
  runCommand(args, {
    ...options,
    env: {
      XDG_STATE_HOME: home,
      XDG_CONFIG_HOME: join(home, 'config'),
      MOORING_API_URL: undefined,
      MOORING_TOKEN: undefined,
      ...options.env,
    },
  });

test('without a token: 401 with a challenge, and what to do next', async () => {
  const none = await get('/v1/projects');
  expect(none).toMatchObject({
    status: 401,
    challenge: 'Bearer realm="mooring"',
    body: { error_code: 'Unauthorized' },
  });
  expect(none.body.message).toMatch(/mooring login.*MOORING_TOKEN/);
  for (const wrong of ['Basic YTpi', 'Bearer', 'Bearer a b', `Bearer ${makeTokenSecret()}`, 'Bearer ü']) {
    const answer = await get('/v1/projects', encodeURI(wrong).replaceAll('%20', ' '));
    expect([wrong, answer.status, answer.challenge]).toEqual([
      wrong,
      401,
      'Bearer realm="mooring", error="invalid_token"',
    ]);
  }
  // What tells whether the API is there asks nobody.
  expect((await fetch(`${stack.apiUrl}/openapi.json`)).status).toBe(200);
  expect((await fetch(`${stack.apiUrl}/readyz`)).status).toBe(200);
});

test('a token is shown once and stored as its hash alone', async () => {
  const made = await admin.createToken({ name: 'once', role: 'viewer' });
  expect(made.token).toMatch(/^mooring-token-[A-Za-z0-9_-]{43}$/);
  const stored = await database.db.execute(
    sql`SELECT row_to_json(t)::text AS row FROM access_token t UNION ALL SELECT row_to_json(a)::text FROM audit_log a`,
  );
  const all = stored.rows.map((row) => String(row.row)).join('\n');
  expect(all).toContain(hashTokenSecret(made.token).toString('hex'));
  expect(all).not.toContain(made.token.slice(-20));
  const listed = [];
  for await (const one of admin.listTokens()) listed.push(one);
  expect(listed.find((one) => one.name === 'once')).toMatchObject({ role: 'viewer', project_id: null });
  expect(JSON.stringify(listed)).not.toContain(made.token);
});

test('a revoked token is refused by the very next request, and an expired one', async () => {
  const made = await admin.createToken({ name: 'stolen', role: 'admin' });
  expect((await get('/v1/projects', `Bearer ${made.token}`)).status).toBe(200);
  await admin.revokeToken('stolen');
  const refused = await get('/v1/projects', `Bearer ${made.token}`);
  expect([refused.status, refused.body.message]).toEqual([401, expect.stringMatching(/"stolen" was revoked/)]);
  // Its name is free again.
  const next = await admin.createToken({ name: 'stolen', role: 'admin', expires_in_seconds: 60 });
  await database.db.execute(sql`UPDATE access_token SET time_expires = now() WHERE id = ${next.id}`);
  const late = await get('/v1/projects', `Bearer ${next.token}`);
  expect([late.status, late.body.message]).toEqual([401, expect.stringMatching(/"stolen" has expired/)]);
});

test('403 for what may be seen, 404 with the message of what is not there for what may not, and nothing is written', async () => {
  await admin.createProject({ name: 'mine', description: '' });
  const web = { name: 'web', hostname: 'web', description: '', ncpus: 1, memory: 2 ** 30, start: false };
  const own = await admin.createInstance(web, { project: 'mine' });
  const foreign = await admin.createInstance(web, { project: 'default' });
  const { token } = await admin.createToken({ name: 'mine-viewer', role: 'viewer', project: 'mine' });
  const viewer = new MooringClient({ url: stack.apiUrl, token });
  const seen = [];
  for await (const one of viewer.listInstances()) seen.push(one.id);
  for await (const one of viewer.listProjects()) seen.push(one.name);
  expect(seen).toEqual([own.id, 'mine']);
  const dump = async () =>
    (await database.db.execute(sql`SELECT row_to_json(i)::text AS row FROM instance i ORDER BY id`)).rows;
  const before = await dump();
  await expect(viewer.deleteInstance(own.id)).rejects.toMatchObject({ status: 403, errorCode: 'Forbidden' });
  await expect(viewer.stopInstance(foreign.id)).rejects.toMatchObject({ status: 404 });
  const unknown = randomUUID();
  const messageAt = async (path: string) => (await get(path, `Bearer ${token}`)).body.message;
  expect((await messageAt(`/v1/instances/${foreign.id}`)).replace(foreign.id, '')).toBe(
    (await messageAt(`/v1/instances/${unknown}`)).replace(unknown, ''),
  );
  expect((await messageAt('/v1/instances/web?project=default')).replace('default', '')).toBe(
    (await messageAt('/v1/instances/web?project=nowhere')).replace('nowhere', ''),
  );
  await expect(viewer.listSleds().next()).rejects.toMatchObject({ status: 403 });
  expect(await dump()).toEqual(before);
});

test('the stack makes its own admin token for its user alone, and every command finds it', async () => {
  const { mode } = await stat(stack.adminToken.file);
  expect((mode & 0o777).toString(8)).toBe('600');
  expect((await readFile(stack.adminToken.file, 'utf8')).trim()).toBe(stack.adminToken.secret);
  const listed = await mooring(['sled', 'list', '--json', '--api-url', stack.apiUrl]);
  expect([listed.code, listed.stderr]).toEqual([0, '']);
  expect(JSON.parse(listed.stdout)).toHaveLength(1);
  const me = await mooring(['whoami', '--json', '--api-url', stack.apiUrl]);
  expect(JSON.parse(me.stdout)).toMatchObject({ role: 'admin', project_id: null, fleet_viewer: true });
});

test('login keeps what is piped to it in a file of its user alone; commands then need no more', async () => {
  const { stdout: secret } = await mooring(['token', 'create', 'piped', '--role', 'viewer', '--api-url', stack.apiUrl]);
  expect(secret.trim()).toMatch(/^mooring-token-/);
  const wrong = await mooring(['login', stack.apiUrl], { input: 'mooring-token-nonsense\n' });
  expect([wrong.code, wrong.stderr]).toEqual([1, expect.stringMatching(/not one of this installation.*mooring login/)]);
  const login = await mooring(['login', stack.apiUrl], { input: secret });
  expect([login.code, login.stdout]).toEqual([0, expect.stringMatching(/logged in to .* as "piped", viewer/)]);
  const file = join(home, 'config', 'mooring', 'credentials.json');
  expect(((await stat(file)).mode & 0o777).toString(8)).toBe('600');
  expect(JSON.parse((await mooring(['whoami', '--json'])).stdout)).toMatchObject({ display_name: 'piped' });
  expect((await mooring(['project', 'create', 'no'])).stderr).toMatch(/project_create needs the role collaborator/);
  // What is set for one command goes before what is kept.
  const once = await mooring(['whoami', '--json'], { env: { MOORING_TOKEN: stack.adminToken.secret } });
  expect(JSON.parse(once.stdout)).toMatchObject({ role: 'admin' });
  await mooring(['logout', stack.apiUrl]);
  expect(JSON.parse((await mooring(['whoami', '--json', '--api-url', stack.apiUrl])).stdout)).toMatchObject({
    role: 'admin',
  });
});

test('with a certificate it speaks TLS, and a client that trusts it is served', async (context) => {
  const run = promisify(execFile);
  const folder = await mkdtemp(join(tmpdir(), 'mooring-tls-'));
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1'];
  try {
    await run('openssl', [
      'req',
      '-x509',
      '-newkey',
      'rsa:2048',
      '-nodes',
      '-days',
      '1',
      '-keyout',
      key,
      '-out',
      cert,
      ...subject,
    ]);
  } catch (error) {
    console.warn(
      `SKIPPED: TLS was not tried: no certificate could be made: ${(error as Error).message.split('\n')[0]}`,
    );
    return context.skip();
  }
  const env = {
    DATABASE_URL: stack.databaseUrl,
    TEMPORAL_ADDRESS: stack.temporalAddress,
    MOORING_API_TLS_CERT: cert,
    MOORING_API_TLS_KEY: key,
  };
  const api = startCommand(['api', '--port', '0', '--host', '0.0.0.0'], { env });
  try {
    const [, port] = await api.untilPrinted(/API: \S+:(\d+)/);
    const url = `https://127.0.0.1:${port}`;
    const token = { MOORING_TOKEN: stack.adminToken.secret };
    const served = await mooring(['whoami', '--json', '--api-url', url], {
      env: { ...token, NODE_EXTRA_CA_CERTS: cert },
    });
    expect([served.code, served.stderr]).toEqual([0, '']);
    expect((await mooring(['whoami', '--api-url', url], { env: token })).stderr).toMatch(/self-signed certificate/);
    // Without TLS nobody is answered there.
    await expect(fetch(url.replace('https', 'http'))).rejects.toThrow();
  } finally {
    await api.stop();
    await rm(folder, { recursive: true, force: true });
  }
  const plain = await mooring(['api', '--host', '0.0.0.0', '--port', '0'], {
    env: { DATABASE_URL: stack.databaseUrl, TEMPORAL_ADDRESS: stack.temporalAddress },
  });
  expect([plain.code, plain.stderr]).toEqual([1, expect.stringMatching(/--tls-cert.*--insecure/)]);
});

test('the first token of an installation is made by who holds its database', async () => {
  const env = { DATABASE_URL: stack.databaseUrl };
  const made = await mooring(['token', 'create', 'first', '--role', 'admin', '--in-database', '--json'], { env });
  expect([made.code, made.stderr]).toEqual([0, '']);
  const first = new MooringClient({ url: stack.apiUrl, token: JSON.parse(made.stdout).token });
  expect(await first.whoAmI()).toMatchObject({ display_name: 'first', silo_admin: true });
  const uris = [];
  for await (const entry of admin.listAuditLog()) if (entry.actor_kind === 'database') uris.push(entry.request_uri);
  expect(uris).toEqual(['database:a stack, for its own user', 'database:mooring token create --in-database']);
});

test('it listens where others may listen in only with TLS or on an operator’s confirmation, and never without tokens', () => {
  expect(() => checkListening({ host: '0.0.0.0' })).toThrow(/--tls-cert.*--insecure/);
  expect(() => checkListening({ host: '10.0.0.1', insecure: true, authentication: 'open' })).toThrow(/"open"/);
  expect(() => checkListening({ host: '::', tls: {}, authentication: 'open' })).toThrow(/"open"/);
  for (const fine of [
    { host: '127.0.0.1', authentication: 'open' as const },
    { host: '::1' },
    { host: '0.0.0.0', tls: {} },
    { host: '0.0.0.0', insecure: true },
  ])
    checkListening(fine);
});
