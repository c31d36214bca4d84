/** How the pages of the console are answered: with what headers, from which files, and to whom in the open mode. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fastify } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { addAccessHooks } from '../../api/access.ts';
import { ConsoleFiles } from '../../api/console-files.ts';
import type { ApiApp } from '../../api/context.ts';
import { describeError, errorAnswer } from '../../api/errors.ts';
import { addConsoleRoutes, CONTENT_SECURITY_POLICY } from '../../api/routes/console.ts';
import type { Database } from '../../db/connect.ts';

let folder: string;
let app: ApiApp;
const SCRIPT = 'export const built = true;\n'.repeat(100);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mooring-console-'));
  await mkdir(join(folder, 'assets'));
  await writeFile(join(folder, 'index.html'), '<!doctype html><title>Mooring</title>');
  await writeFile(join(folder, 'assets/index-abc.js'), SCRIPT);
  await writeFile(join(folder, 'assets/secret.key'), 'not a file of a page');
  app = fastify() as unknown as ApiApp;
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  app.setErrorHandler((error, request, reply) => {
    const described = describeError(error);
    void reply.status(described.status).send(errorAnswer(described, request.id));
  });
  addAccessHooks(app, {
    // No page asks it anything.
    db: {} as Database,
    mode: 'open',
    sledOf: () => null,
    onRefused: () => {},
    onAuditLost: () => {},
  });
  addConsoleRoutes(app, new ConsoleFiles(folder));
});
afterAll(async () => {
  await app?.close();
  await rm(folder, { recursive: true, force: true });
});

const get = (url: string, headers: Record<string, string> = {}) =>
  app.inject({ url, headers: { host: '127.0.0.1:12220', ...headers } });

test('the policy lets in this server’s own alone, and nothing inline', () => {
  const directives = CONTENT_SECURITY_POLICY.split('; ').map((directive) => directive.split(' '));
  for (const [name, ...sources] of directives)
    for (const source of sources)
      expect([name, source]).toEqual([
        name,
        expect.stringMatching(name === 'img-src' ? /^('self'|data:)$/ : /^'(self|none)'$/),
      ]);
  const names = directives.map(([name]) => name);
  expect(names).toEqual(
    expect.arrayContaining(['default-src', 'script-src', 'base-uri', 'form-action', 'frame-ancestors']),
  );
  expect(directives[0]).toEqual(['default-src', "'none'"]);
});

test('a page has the policy, and is asked for anew by its mark; a file never changes', async () => {
  const page = await get('/');
  expect(page.statusCode).toBe(200);
  expect(page.headers).toMatchObject({
    'content-security-policy': CONTENT_SECURITY_POLICY,
    'content-type': 'text/html; charset=utf-8',
    'cache-control': 'no-cache',
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'x-frame-options': 'DENY',
  });
  expect(page.headers['set-cookie']).toBeUndefined();
  const etag = String(page.headers.etag);
  for (const known of [etag, `W/${etag}`, `"other", ${etag}`])
    expect((await get('/', { 'if-none-match': known })).statusCode).toBe(304);
  expect((await get('/', { 'if-none-match': '"other"' })).statusCode).toBe(200);
  const file = await get('/assets/index-abc.js', { 'accept-encoding': 'br, gzip' });
  expect(file.headers).toMatchObject({ 'content-encoding': 'gzip', 'content-type': 'text/javascript; charset=utf-8' });
  expect(file.headers['cache-control']).toContain('immutable');
  expect(file.rawPayload.length).toBeLessThan(SCRIPT.length / 4);
  for (const encodings of ['', 'identity', 'gzip;q=0'])
    expect((await get('/assets/index-abc.js', { 'accept-encoding': encodings })).body).toBe(SCRIPT);
});

test.each([
  '/assets/nothing.js',
  '/assets/secret.key',
  '/assets/..%2findex.html',
  '/assets/%2e%2e%2findex.html',
  '/assets/.',
  '/docs',
])('what no page asks for is not there: %s', async (path) => {
  expect((await get(path)).statusCode).toBe(404);
});

test('without a build there is no console, and that is said', async () => {
  const bare = new ConsoleFiles(join(folder, 'nowhere'));
  expect([bare.isBuilt, await bare.page('index'), await bare.asset('index-abc.js')]).toEqual([false, null, null]);
  expect((await get('/docs')).json().message).toMatch(/npm run build/);
});

describe('in the open mode', () => {
  const person = { 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' };
  test.each([
    ['a program', {}, 200],
    ['the page itself', { 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'cors' }, 200],
    ['a person who follows a link of another site', { 'sec-fetch-site': 'cross-site', ...person }, 200],
    ['a person who comes from another port of this machine', { 'sec-fetch-site': 'same-site', ...person }, 200],
    ['a frame on another site', { 'sec-fetch-site': 'cross-site', ...person, 'sec-fetch-dest': 'iframe' }, 401],
    ['a script of another site', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors' }, 401],
    ['a name that somebody gave this address', { host: 'rebound.example', ...person }, 401],
  ])('%s: %j is answered with %i', async (_, headers, status) => {
    expect((await get('/', headers as Record<string, string>)).statusCode).toBe(status);
  });
});
