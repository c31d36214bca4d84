/** A server and those who hold its connections: whatever they send or don't, it answers others, and cuts nobody whom it is answering. */
import { readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import { createServer as createSecureServer, request as requestSecurely } from 'node:https';
import { type AddressInfo, connect, type Server, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { DescriptorReserve, type DescriptorSource } from '../../platform/host/descriptor-reserve.ts';
import { type ConnectionLimits, connectionShare, limitConnections } from '../../platform/http/connection-limits.ts';
import type { IdentityMaterial } from '../../platform/identity/holder.ts';
import { Folders, materialOf, strangeAuthority } from '../support/identities.ts';
import { eventually } from '../support/wait.ts';

const MOST = 6;
const folders = new Folders();
let material: IdentityMaterial;
beforeAll(async () => {
  material = await materialOf(await strangeAuthority(folders), { kind: 'control_plane' }, ['127.0.0.1']);
});
afterAll(() => folders.close());
const ends: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

const SCHEMES = ['http', 'https'] as const;
type Scheme = (typeof SCHEMES)[number];

/** A server that answers at once, but for `/later`, which it answers when it is told to. */
async function listening(scheme: Scheme, limits: ConnectionLimits = { most: MOST }) {
  const later: ServerResponse[] = [];
  const onRequest = (message: IncomingMessage, response: ServerResponse) => {
    if (message.url === '/later') later.push(response);
    else if (message.method === 'GET') response.end('answered');
    else message.resume().once('end', () => response.end('answered'));
  };
  const server =
    scheme === 'http'
      ? createServer(onRequest)
      : createSecureServer({ key: material.privateKeyPem, cert: material.certificatePem }, onRequest);
  limitConnections(server, limits);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  const get = (path: string) =>
    new Promise<string>((resolve, reject) => {
      const send = scheme === 'http' ? request : requestSecurely;
      send({ host: '127.0.0.1', port, path, agent: false, rejectUnauthorized: false }, (answer) => {
        let text = '';
        answer
          .on('data', (chunk) => {
            text += chunk;
          })
          .once('end', () => resolve(text));
      })
        .once('error', reject)
        .end();
    });
  /** Connects, says this, and goes on reading. */
  const hold = (sent: string, raw = false) => {
    const socket: Socket =
      scheme === 'http' || raw
        ? connect(port, '127.0.0.1', () => socket.write(sent))
        : connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => socket.write(sent));
    socket.on('error', () => {}).resume();
    ends.push(() => void socket.destroy());
    return socket;
  };
  return { server: server as Server, port, get, hold, later };
}

const openTo = (server: Server) =>
  new Promise<number>((resolve) => server.getConnections((_, count) => resolve(count)));

const HELD: Readonly<Record<string, { readonly sent: string; readonly raw?: boolean }>> = {
  'say nothing': { sent: '' },
  'say nothing, not even to TLS': { sent: '', raw: true },
  'begin with TLS and go on with nothing': { sent: '\u0016\u0003\u0001', raw: true },
  'never end their headers': { sent: 'GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ' },
  'never send their body': { sent: 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1' },
  'are kept for a next request': { sent: 'GET / HTTP/1.1\r\nHost: a\r\n\r\n' },
};

describe.each(SCHEMES)('%s', (scheme) => {
  test.each(Object.entries(HELD))('connections that %s make room for those that are asked on', async (_, held) => {
    const { server, get, hold } = await listening(scheme);
    for (let round = 0; round < 5; round++) {
      const sockets = Array.from({ length: MOST }, () => hold(held.sent, held.raw));
      await eventually(() => sockets.every((socket) => socket.destroyed || !socket.connecting), 'they never connected');
      expect(await get('/')).toBe('answered');
      expect(await openTo(server)).toBeLessThanOrEqual(MOST);
    }
  });

  test('who is being answered is never cut: the new one is, and is answered when there is room', async () => {
    const { server, get, later } = await listening(scheme);
    const answers: Promise<string>[] = [];
    for (let more = 1; more <= MOST; more++) {
      answers.push(get('/later'));
      await eventually(() => later.length === more, 'a request never came');
    }
    await expect(get('/')).rejects.toThrow();
    expect(await openTo(server)).toBe(MOST);
    for (const response of later) response.end('late');
    expect(await Promise.all(answers)).toEqual(Array(MOST).fill('late'));
    expect(await get('/')).toBe('answered');
  });

  test('a connection without a request is cut in time, and one with a request is not', async () => {
    const { hold, get, later } = await listening(scheme, { firstRequestMs: 300 });
    const waiting = get('/later');
    await eventually(() => later.length === 1, 'a request never came');
    const silent = [hold(''), hold('', true), hold('GET / HTTP/1.1\r\nX-Slow: ')];
    await eventually(() => silent.every((socket) => socket.destroyed), 'they were never cut');
    later[0]?.end('late');
    expect(await waiting).toBe('late');
  });

  test('where the process has no descriptors left, those without a request are cut, and few are taken', async () => {
    let left = 1_000;
    const source: DescriptorSource = {
      take() {
        if (left <= 0) throw Object.assign(new Error('none left'), { code: 'EMFILE' });
        left -= 1;
        return left;
      },
      give() {
        left += 1;
      },
      limit: () => 1_000,
    };
    const descriptors = new DescriptorReserve(source);
    ends.push(descriptors.hold(() => {}));
    const { server, hold, get, later } = await listening(scheme, { descriptors });
    const waiting = get('/later');
    await eventually(() => later.length === 1, 'a request never came');
    const silent = Array.from({ length: 20 }, () => hold(''));
    await eventually(async () => (await openTo(server)) === 21, 'they never connected');
    left = 0;
    await eventually(() => {
      descriptors.look();
      // What it gave up is taken by others.
      left = Math.min(left, 0);
      return silent.every((socket) => socket.destroyed);
    }, 'they were never cut');
    expect(descriptors.isScarce).toBe(true);
    const few = Array.from({ length: 20 }, () => hold('GET / HTTP/1.1\r\nHost: a\r\n\r\n'));
    await eventually(() => few.every((socket) => socket.destroyed || !socket.connecting), 'they never connected');
    expect(await get('/')).toBe('answered');
    expect(await openTo(server)).toBeLessThanOrEqual(8);
    later[0]?.end('late');
    expect(await waiting).toBe('late');
    left = 1_000;
    descriptors.look();
    expect(descriptors.isScarce).toBe(false);
  });
});

test('a server has a part of the descriptors of its process, whatever these are', () => {
  for (const limit of [16, 64, 256, 1_024, 20_000, 524_288, Number.POSITIVE_INFINITY]) {
    const share = connectionShare(limit);
    expect(share).toBeGreaterThanOrEqual(4);
    expect(share).toBeLessThanOrEqual(Math.min(16_384, limit / 4));
    const server = createServer();
    limitConnections(server, {
      descriptors: new DescriptorReserve({ take: () => 0, give: () => {}, limit: () => limit }),
    });
    expect(server.maxConnections).toBe(share + 1);
  }
});

test('there is no server without its limit', () => {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const makes = /(?<!\.)\b(fastify|create\w*Server)\(/;
  // What gives a server its limit: `configureApp` is that of the API's listeners.
  const limits = /\b(limitConnections|configureApp|bounded)\(/;
  const made: string[] = [];
  for (const room of ['api', 'cli', 'platform', 'sled-agent', 'stack', 'temporal', 'worker'])
    for (const path of readdirSync(`${root}/${room}`, { recursive: true, encoding: 'utf8' })) {
      // The one looks for a free port, the other closes each connection at once.
      if (!path.endsWith('.ts') || ['host/child-process.ts', 'vmm-store.ts'].includes(path)) continue;
      const text = readFileSync(`${root}/${room}/${path}`, 'utf8');
      if (!makes.test(text)) continue;
      made.push(`${room}/${path}`);
      expect([path, limits.test(text)]).toEqual([path, true]);
    }
  expect(made).toEqual(expect.arrayContaining(['api/server.ts', 'api/sled-listener.ts', 'sled-agent/agent-app.ts']));
  expect(readFileSync(`${root}/api/app.ts`, 'utf8')).toContain('limitConnections(app.server)');
});
