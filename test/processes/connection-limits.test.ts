/** A server and those who hold its connections: whatever they send or don't, it answers others, and cuts nobody whom it is answering. */
import { readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import { createServer as createSecureServer, request as requestSecurely } from 'node:https';
import { type AddressInfo, connect, type Server, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { DescriptorReserve, type DescriptorSource } from '../../platform/host/descriptor-reserve.ts';
import {
  type ConnectionLimits,
  connectionShare,
  limitConnections,
  SHARES,
} from '../../platform/http/connection-limits.ts';
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
    else if (message.url === '/refused') response.writeHead(404).end('refused');
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

/** A process whose descriptors run out when a test says so. */
function processWith(limit = 1_000) {
  let areLeft = true;
  const descriptors = new DescriptorReserve({
    take() {
      if (!areLeft) throw Object.assign(new Error('none left'), { code: 'EMFILE' });
      return 0;
    },
    give() {},
    limit: () => limit,
  });
  ends.push(descriptors.hold(() => {}));
  const setLeft = (are: boolean) => {
    areLeft = are;
    descriptors.look();
    expect(descriptors.isScarce).toBe(!are);
  };
  return { descriptors, setLeft };
}

const AGES: readonly (readonly [string, number])[] = [
  ['all of which are young', 3_600_000],
  ['none of which is young', 0],
];

describe.each(SCHEMES)('callers and newcomers, %s', (scheme) => {
  type Listening = Awaited<ReturnType<typeof listening>>;
  /** A connection that is kept for a next request, after each `ask`. */
  async function caller({ hold }: Listening, path = '/') {
    const socket = hold('');
    let heard = '';
    socket.on('data', (bytes: Buffer) => {
      heard += bytes.toString();
    });
    let asked = 0;
    const ask = async (next = path) => {
      socket.write(`GET ${next} HTTP/1.1\r\nHost: a\r\n\r\n`);
      asked += 1;
      await eventually(() => heard.split('HTTP/1.1 ').length > asked || socket.destroyed, 'it was not answered');
      return !socket.destroyed;
    };
    expect(await ask()).toBe(true);
    return { socket, ask };
  }
  const isConnected = (socket: Socket) => socket.destroyed || !socket.connecting;

  test.each(AGES)(
    'in a shortage, whoever was answered keeps his connection, whatever newcomers come, %s',
    async (_, youngMs) => {
      const { descriptors, setLeft } = processWith();
      const open = await listening(scheme, { descriptors, youngMs });
      const callers = await Promise.all(Array.from({ length: 30 }, () => caller(open)));
      for (let shortage = 0; shortage < 2; shortage++) {
        setLeft(false);
        for (const sent of Object.values(HELD)) {
          const held = Array.from({ length: 12 }, () => open.hold(sent.sent, sent.raw));
          await eventually(() => held.every(isConnected), 'they never connected');
          expect(await open.get('/')).toBe('answered');
          expect(await openTo(open.server)).toBeLessThanOrEqual(34);
          for (const socket of held) socket.destroy();
        }
        expect(await Promise.all(callers.map(({ ask }) => ask()))).toEqual(callers.map(() => true));
        setLeft(true);
        await eventually(async () => (await openTo(open.server)) === callers.length, 'they never left');
      }
    },
  );

  test('in a shortage the places of those who left are taken by others', async () => {
    const { descriptors, setLeft } = processWith();
    const open = await listening(scheme, { descriptors });
    const before = await Promise.all(Array.from({ length: 20 }, () => caller(open)));
    setLeft(false);
    expect(await open.get('/')).toBe('answered');
    for (const { socket } of before.splice(0, 10)) socket.destroy();
    await eventually(async () => (await openTo(open.server)) === 10, 'they never left');
    const after = await Promise.all(Array.from({ length: 12 }, () => caller(open)));
    expect(await Promise.all([...before, ...after].map(({ ask }) => ask()))).toEqual(Array(22).fill(true));
  });

  test.each(AGES)(
    'connections that only open drive out no more than a part of those that are asked on, %s',
    async (_, youngMs) => {
      const open = await listening(scheme, { most: 16, youngMs });
      const callers = await Promise.all(Array.from({ length: 16 }, () => caller(open)));
      for (const sent of ['', 'GET / HTTP/1.1\r\nX-Slow: ']) {
        for (let round = 0; round < 4; round++) {
          const held = Array.from({ length: 8 }, () => open.hold(sent, true));
          await eventually(() => held.every(isConnected), 'they never connected');
          expect(await open.get('/')).toBe('answered');
        }
      }
      await Promise.all(callers.filter(({ socket }) => !socket.destroyed).map(({ ask }) => ask()));
      expect(callers.filter(({ socket }) => !socket.destroyed).length).toBeGreaterThanOrEqual(11);
    },
  );

  test('a handshake that is under way is not given up while somebody waits for a next request', async () => {
    const open = await listening(scheme, { most: MOST, youngMs: 3_600_000 });
    const handshake = open.hold('', true);
    await eventually(async () => (await openTo(open.server)) === 1, 'it never connected');
    const callers = await Promise.all(Array.from({ length: MOST - 1 }, () => caller(open)));
    for (let more = 0; more < 2 * MOST; more++) await caller(open);
    expect(handshake.destroyed).toBe(false);
    await eventually(() => callers.every(({ socket }) => socket.destroyed), 'nobody was given up');
  });

  test('who was only ever refused goes before who was answered, though he was there later', async () => {
    const open = await listening(scheme, { most: MOST });
    const callers = await Promise.all(Array.from({ length: MOST - 1 }, () => caller(open)));
    for (let more = 0; more < 2 * MOST; more++) await caller(open, '/refused');
    expect(await Promise.all(callers.map(({ ask }) => ask('/refused')))).toEqual(callers.map(() => true));
    expect(await open.get('/')).toBe('answered');
    expect(await Promise.all(callers.map(({ ask }) => ask()))).toEqual(callers.map(() => true));
  });

  test.each(fc.sample(fc.shuffledSubarray([0, 1, 2, 3, 4, 5], { minLength: MOST }), 4).map((order) => [order]))(
    'those that were used least recently go first: %j',
    async (order) => {
      const open = await listening(scheme, { most: MOST });
      const callers = await Promise.all(Array.from({ length: MOST }, () => caller(open)));
      for (const index of order) await callers[index]?.ask();
      for (let gone = 1; gone < MOST; gone++) {
        await caller(open);
        await eventually(() => callers[order[gone - 1] ?? 0]?.socket.destroyed === true, 'nobody was given up');
        expect(order.map((index) => callers[index]?.socket.destroyed)).toEqual(order.map((_, place) => place < gone));
      }
    },
  );
});

test('a server has a part of the descriptors of its process, whatever these are', () => {
  for (const share of Object.values(SHARES)) {
    let before = 0;
    for (const limit of [16, 64, 256, 1_024, 4_096, 65_536, 524_288, Number.POSITIVE_INFINITY]) {
      const connections = connectionShare(limit, share);
      expect(connections).toBeGreaterThanOrEqual(Math.max(4, before));
      // A larger limit is always of use.
      if (limit > 64) expect(connections).toBeGreaterThan(before);
      if (limit >= 64) expect(connections).toBeLessThanOrEqual(limit * share);
      expect(Number.isFinite(connections)).toBe(true);
      before = connections;
      const server = createServer();
      limitConnections(server, {
        share,
        descriptors: new DescriptorReserve({ take: () => 0, give: () => {}, limit: () => limit }),
      });
      expect(server.maxConnections).toBe(connections + 1);
    }
  }
  // What an API and a sled agent have left for PostgreSQL, Temporal, guests and files.
  const { sleds, operators, metrics, agent } = SHARES;
  expect(sleds + operators + metrics).toBeLessThanOrEqual(7 / 8);
  expect(agent + metrics).toBeLessThanOrEqual(1 / 2);
});

test.each([100, 1_000, 5_000])(
  'an API with eight descriptors a sled has three connections for each of %d sleds',
  (sleds) => {
    expect(connectionShare(Math.max(4_096, sleds * 8), SHARES.sleds)).toBeGreaterThanOrEqual(sleds * 3);
  },
);

test('there is no server without its limit', () => {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const makes = /(?<!\.)\b(fastify|create\w*Server)\(/;
  // What gives a server its limit: `configureApp` is that of the API's listeners.
  const limits = /\b(limitConnections|configureApp|bounded)\(/;
  const made: string[] = [];
  for (const room of ['api', 'cli', 'platform', 'sled-agent', 'stack', 'temporal', 'worker'])
    for (const path of readdirSync(`${root}/${room}`, { recursive: true, encoding: 'utf8' })) {
      // Two look for a free port, or at one, the other closes each connection at once.
      const brief = ['host/child-process.ts', 'host/free-address.ts', 'vmm-store.ts'];
      if (!path.endsWith('.ts') || brief.includes(path)) continue;
      const text = readFileSync(`${root}/${room}/${path}`, 'utf8');
      if (!makes.test(text)) continue;
      made.push(`${room}/${path}`);
      expect([path, limits.test(text)]).toEqual([path, true]);
    }
  expect(made).toEqual(expect.arrayContaining(['api/server.ts', 'api/sled-listener.ts', 'sled-agent/agent-app.ts']));
  expect(readFileSync(`${root}/api/app.ts`, 'utf8')).toContain('limitConnections(app.server, ');
});
