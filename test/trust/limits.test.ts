/** Slow, huge and malformed requests: each gets a clear answer in the API's own format, and none holds up the others. */
import { connect, type Socket } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { PERMISSIONS } from '../../model/permissions.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { brokenBodies, brokenRequests, readMark, sendRaw } from '../support/broken-requests.ts';
import { type Harness, startHarness } from '../support/harness.ts';

/** Short, so that the test need not wait long for what is too slow. */
const HEADERS_MS = 1_000;
const REQUEST_MS = 2_000;
const BODY_BYTES = 64 * 1024;
const PER_MINUTE = 50;

let harness: Harness;
const sockets: Socket[] = [];
beforeAll(async () => {
  harness = await startHarness({
    hosts: ['control-plane'],
    sleds: 1,
    reconcileEveryMs: 0,
    limits: {
      headersMs: HEADERS_MS,
      requestMs: REQUEST_MS,
      bodyBytes: BODY_BYTES,
      headerBytes: 8 * 1024,
      requestsPerMinute: PER_MINUTE,
    },
  });
});
afterAll(async () => {
  for (const socket of sockets) socket.destroy();
  await harness?.close();
});

/** Opens a connection and sends what a slow or careless client sends; collects the answer. */
function raw(text: string) {
  const { hostname, port } = new URL(harness.stack.apiUrl);
  const socket = connect(Number(port), hostname);
  sockets.push(socket);
  const received = { text: '', closed: false };
  socket.on('data', (chunk) => {
    received.text += chunk;
  });
  socket.on('close', () => {
    received.closed = true;
  });
  socket.on('error', () => {});
  socket.write(text);
  return { socket, received };
}

async function answered(received: { text: string; closed: boolean }) {
  await waitUntil(() => received.closed, 'the connection was never closed', 60_000, 20);
  const [head = '', body = ''] = received.text.split('\r\n\r\n');
  return { status: Number(head.split(' ')[1]), body: JSON.parse(body) as Record<string, string> };
}

const answers = async () => (await fetch(`${harness.stack.apiUrl}/v1/projects`)).status === 200;

test('headers and bodies that never end are answered with 408, and others are answered meanwhile', async () => {
  const slow = Array.from({ length: 50 }, (_, index) =>
    raw(
      index % 2 === 0
        ? 'GET /v1/projects HTTP/1.1\r\nHost: localhost\r\nX-Slow: '
        : 'POST /v1/projects HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"name":',
    ),
  );
  // They go on sending, a letter at a time.
  const drip = setInterval(() => {
    for (const { socket, received } of slow) if (!received.closed && socket.writable) socket.write('x');
  }, 100);
  try {
    let served = 0;
    while (slow.some(({ received }) => !received.closed)) {
      expect(await answers()).toBe(true);
      served += 1;
    }
    expect(served).toBeGreaterThan(3);
  } finally {
    clearInterval(drip);
  }
  for (const { received } of slow) {
    const { status, body } = await answered(received);
    expect([status, body]).toEqual([
      408,
      {
        error_code: 'RequestTimeout',
        message: expect.stringContaining('too long to arrive'),
        request_id: expect.any(String),
      },
    ]);
  }
});

test('what is too large, no JSON, no HTTP or of another kind is refused in the shape of every error', async () => {
  const post = async (body: string, type = 'application/json', headers: Record<string, string> = {}) => {
    const response = await fetch(`${harness.stack.apiUrl}/v1/projects`, {
      method: 'POST',
      headers: { 'content-type': type, ...headers },
      body,
    });
    const { error_code, message, request_id } = (await response.json()) as Record<string, string>;
    expect(request_id).toMatch(/^[0-9a-f-]{36}$/);
    return [response.status, error_code, message];
  };
  expect(await post(`{"name":"a","description":"${'x'.repeat(BODY_BYTES)}"}`)).toEqual([
    413,
    'PayloadTooLarge',
    expect.stringMatching(/large/),
  ]);
  expect(await post('{"name":')).toEqual([400, 'InvalidRequest', 'the body is not valid JSON']);
  expect(await post('[1]')).toEqual([400, 'InvalidRequest', expect.any(String)]);
  expect(await post('"'.padEnd(30_000, '['))).toEqual([400, 'InvalidRequest', 'the body is not valid JSON']);
  expect(await post('['.repeat(30_000) + ']'.repeat(30_000))).toEqual([400, 'InvalidRequest', expect.any(String)]);
  expect(await post('<a/>', 'application/xml')).toEqual([415, 'UnsupportedMediaType', expect.any(String)]);
  expect(await post('{"name":"a","description":"\\u0000"}')).toEqual([
    400,
    'InvalidRequest',
    expect.stringMatching(/NUL/),
  ]);
  for (const path of ['/v1/projects/%00', '/v1/instances?project=%00', '/v1/instances/a?project=%ff', '/v1/projects/%'])
    expect([path, (await fetch(harness.stack.apiUrl + path)).status]).toEqual([path, path.includes('ff') ? 404 : 400]);
  const forged = (place: unknown) => Buffer.from(JSON.stringify(place)).toString('base64url');
  for (const token of [
    'nonsense',
    forged({ order: 'id_ascending', after: 'x' }),
    forged({ order: 'name_ascending', after: '\0' }),
    forged({ newestFirst: true, time: '9999-99-99 99:99:99+00', id: '00000000-0000-4000-8000-000000000000' }),
    forged({ newestFirst: true, time: '2026-01-01 00:00:00+00', id: 'x' }),
  ])
    for (const list of ['/v1/instances', '/v1/projects', '/v1/system/audit-log', '/v1/system/hardware/sleds'])
      expect((await fetch(`${harness.stack.apiUrl}${list}?page_token=${token}`)).status).toBeLessThan(500);

  const long = await answered(raw(`GET / HTTP/1.1\r\nHost: a\r\nX-Long: ${'x'.repeat(10_000)}\r\n\r\n`).received);
  expect([long.status, long.body.error_code]).toEqual([431, 'RequestHeaderFieldsTooLarge']);
  const garbage = await answered(raw('\u0016\u0003\u0001 hello\r\n\r\n').received);
  expect([garbage.status, garbage.body.error_code]).toEqual([400, 'InvalidRequest']);
  expect(await answers()).toBe(true);
});

test('what HTTP itself refuses has the API’s error body and a request id, whatever it is', async () => {
  const target = {
    url: harness.stack.apiUrl,
    headerBytes: 8 * 1024,
    bodyBytes: BODY_BYTES,
    path: '/v1/projects',
    allow: ['GET', 'HEAD', 'POST'],
    parent: '/v1/projects',
    put: { method: 'POST', path: '/v1/projects' },
  };
  for (const [what, { text, status, allow }] of [
    ...Object.entries(brokenRequests(target)),
    ...Object.entries(brokenBodies(target)),
  ]) {
    const answer = await sendRaw(target.url, text);
    expect([what, answer.status, answer.text]).toEqual([what, status, expect.stringContaining('error_code')]);
    const mark = readMark(answer, (name) => name);
    if (allow !== undefined) expect([what, mark.allow]).toEqual([what, [...allow].sort()]);
  }
});

test('every path says which methods it takes', async () => {
  const paths = new Map<string, string[]>();
  for (const route of Object.keys(PERMISSIONS)) {
    const [method = '', path = ''] = route.split(' ');
    paths.set(path, [...(paths.get(path) ?? []), method, ...(method === 'GET' ? ['HEAD'] : [])]);
  }
  for (const [path, methods] of paths) {
    const there = path.replace(/:\w+/g, 'x');
    const answer = await fetch(harness.stack.apiUrl + there, { method: 'PATCH', body: 'no JSON' });
    expect([path, answer.status, answer.headers.get('allow')?.split(', ').sort()]).toEqual([path, 405, methods.sort()]);
    expect(await answer.json()).toMatchObject({ error_code: 'MethodNotAllowed', request_id: expect.any(String) });
  }
  for (const path of ['/v1', '/v1/projects/', '/v1/projects/a/b', '/vmms', '//v1/projects'])
    expect([path, (await fetch(harness.stack.apiUrl + path, { method: 'PATCH' })).status]).toEqual([path, 404]);
});

test('a page has no more than its limit, and a larger one is refused', async () => {
  expect((await fetch(`${harness.stack.apiUrl}/v1/instances?limit=10001`)).status).toBe(400);
});

test('a token that sends too many requests gets the time to go on; nobody else is held up', async () => {
  const headers = { authorization: `Bearer ${harness.stack.adminToken.secret}` };
  const path = `${harness.stack.apiUrl}/v1/projects`;
  let last = await fetch(path, { headers });
  let sent = 1;
  for (; last.status === 200 && sent <= PER_MINUTE + 5; sent++) last = await fetch(path, { headers });
  expect(last.status).toBe(429);
  expect(sent).toBeGreaterThan(PER_MINUTE / 2);
  expect(Number(last.headers.get('retry-after'))).toBeGreaterThan(0);
  expect(await last.json()).toMatchObject({
    error_code: 'TooManyRequests',
    message: expect.stringMatching(/go on in \d+ s/),
    request_id: expect.any(String),
  });
  const other = await harness.client.createToken({ name: 'other', role: 'viewer' });
  expect((await fetch(path, { headers: { authorization: `Bearer ${other.token}` } })).status).toBe(200);
  // The stack's own user has none to count by.
  for (let more = 0; more < PER_MINUTE + 5; more++) expect(await answers()).toBe(true);
});

test('a page of another site is not the local operator, in whosever browser it is', async () => {
  const ask = (headers: string) =>
    answered(raw(`POST /v1/projects HTTP/1.1\r\n${headers}Connection: close\r\nContent-Length: 0\r\n\r\n`).received);
  for (const foreign of [
    'Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n',
    'Host: rebound.evil.example:12220\r\n',
    'Host: 127.0.0.1\r\nOrigin: null\r\n',
  ])
    expect((await ask(foreign)).status).toBe(401);
  // Every route, whatever it needs.
  for (const foreign of [
    'Host: 127.0.0.1\r\nOrigin: http://203.0.113.7\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://[2001:db8::7]\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://evil\r\n',
    'Host: router:31220\r\n',
    'Host: 203.0.113.7:31220\r\n',
    'Host: 0.0.0.0\r\n',
    'Host: [::]\r\n',
    'Host: evil.example\r\n',
    'Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n',
    'Host: 127.0.0.1\r\nSec-Fetch-Site: same-site\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://localhost:5173\r\nSec-Fetch-Site: cross-site\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://203.0.113.7\r\nSec-Fetch-Site: same-site\r\n',
  ])
    for (const route of Object.keys(PERMISSIONS)) {
      const [method = '', path = ''] = route.split(' ');
      const request = `${method} ${path.replace(/:\w+/g, 'x')} HTTP/1.1\r\n${foreign}Connection: close\r\nContent-Length: 0\r\n\r\n`;
      expect([route, foreign, (await sendRaw(harness.stack.apiUrl, request)).status]).toEqual([route, foreign, 401]);
    }
  for (const own of [
    'Host: localhost:12220\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://127.8.8.8:1\r\nSec-Fetch-Site: same-site\r\n',
    'Host: 127.0.0.1\r\nOrigin: http://app.localhost\r\nSec-Fetch-Site: same-origin\r\n',
    'Host: 127.0.0.1\r\nSec-Fetch-Site: none\r\n',
    'Host: [::1]:12220\r\n',
    'Host: control-plane\r\nOrigin: http://localhost:5173\r\n',
  ])
    expect((await ask(own)).status).toBe(400);
});
