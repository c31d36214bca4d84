/** The QMP client against a server that sends what QEMU would, and what it should never send. */
import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { QmpClient, QmpDisconnected, QmpError, type QmpEvent, QmpTimeout } from '../../sled-agent/qemu/qmp-client.ts';

interface Asked {
  execute?: string;
  'exec-oob'?: string;
  arguments: Record<string, unknown>;
  id: number;
}

const GREETING = {
  QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: 'Debian' }, capabilities: ['oob'] },
};
const stamp = { seconds: 1, microseconds: 2 };

let server: Server;
let path: string;
let socket: Socket;
let asked: Asked[];
let events: QmpEvent[];
let closed: number;
let greet: unknown;
let reply: (question: Asked) => void;
const clients: QmpClient[] = [];

const send = (value: unknown) => socket.write(`${typeof value === 'string' ? value : JSON.stringify(value)}\r\n`);

beforeEach(async () => {
  path = join(tmpdir(), `qmp-${randomUUID()}.sock`);
  [asked, events, closed, greet] = [[], [], 0, GREETING];
  reply = ({ id }) => send({ return: {}, id });
  server = createServer((connection) => {
    socket = connection;
    connection.on('error', () => {});
    if (greet !== null) send(greet);
    createInterface({ input: connection })
      .on('error', () => {})
      .on('line', (line) => {
        const question = JSON.parse(line) as Asked;
        asked.push(question);
        reply(question);
      });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  socket?.destroy();
  await new Promise((resolve) => server.close(resolve));
  await rm(path, { force: true });
});

async function connect(timeoutMs = 20_000): Promise<QmpClient> {
  const client = await QmpClient.connect({
    path,
    timeoutMs,
    onEvent: (event) => events.push(event),
    onClose: () => {
      closed += 1;
    },
  });
  clients.push(client);
  return client;
}

test('it takes the greeting, enables out of band, and knows the version', async () => {
  const client = await connect();
  expect(asked).toEqual([{ execute: 'qmp_capabilities', arguments: { enable: ['oob'] }, id: 1 }]);
  expect([client.version, client.outOfBand]).toEqual(['7.2.22', true]);
});

test('without out of band it enables nothing, and refuses to send so', async () => {
  greet = { QMP: { ...GREETING.QMP, capabilities: [] } };
  const client = await connect();
  expect(asked[0]?.arguments).toEqual({});
  await expect(client.executeOutOfBand('yank')).rejects.toThrow(QmpError);
});

test('answers find their questions by id, in whatever order they come', async () => {
  const client = await connect();
  const held: Asked[] = [];
  reply = (question) => {
    held.push(question);
    if (held.length === 2) for (const { id, execute } of held.reverse()) send({ return: execute, id });
  };
  expect(await Promise.all([client.execute('query-status'), client.execute('query-name')])).toEqual([
    'query-status',
    'query-name',
  ]);
});

test('an error names the command, its class and what QEMU answers', async () => {
  const client = await connect();
  reply = ({ id }) => send({ error: { class: 'GenericError', desc: 'Resetting is required' }, id });
  const error = await client.execute('cont').catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(QmpError);
  expect(error).toMatchObject({ errorClass: 'GenericError', message: 'QMP cont: Resetting is required' });
});

test('events come in order, also between a question and its answer, and in pieces', async () => {
  const client = await connect();
  reply = ({ id }) => {
    const line = JSON.stringify({ event: 'STOP', timestamp: stamp });
    socket.write(line.slice(0, 9));
    socket.write(`${line.slice(9)}\n${JSON.stringify({ event: 'RESUME', data: { a: 1 }, timestamp: stamp })}\n`);
    send({ return: 1, id });
  };
  expect(await client.execute('stop')).toBe(1);
  expect(events.map(({ event, data }) => [event, data])).toEqual([
    ['STOP', {}],
    ['RESUME', { a: 1 }],
  ]);
});

test('a command that hangs ends in time, its late answer troubles nobody, and out of band goes past it', async () => {
  const client = await connect();
  let hanging = 0;
  reply = (question) => {
    if (question.execute === 'query-migrate') hanging = question.id;
    else send({ return: question['exec-oob'] ?? question.execute, id: question.id });
  };
  await expect(client.execute('query-migrate', {}, 30)).rejects.toThrow(QmpTimeout);
  expect(await client.executeOutOfBand('yank', { instances: [] })).toBe('yank');
  send({ return: 'late', id: hanging });
  expect(await client.execute('query-status')).toBe('query-status');
});

test('when QEMU is gone, what waits fails, it is reported once, and later commands fail at once', async () => {
  const client = await connect();
  reply = () => socket.destroy();
  await expect(client.execute('query-status')).rejects.toThrow(QmpDisconnected);
  await waitUntil(() => closed === 1, 'it was never reported');
  await expect(client.execute('query-status')).rejects.toThrow(QmpDisconnected);
});

test('a client that closes itself gets no report of it; what it asked fails; another one can come', async () => {
  const first = await connect();
  reply = () => {};
  const waiting = first.execute('query-status');
  first.close();
  await expect(waiting).rejects.toThrow(QmpDisconnected);
  expect(closed).toBe(0);
  reply = ({ id }) => send({ return: 'again', id });
  expect(await (await connect()).execute('query-status')).toBe('again');
  // By now the end of the first connection has come.
  expect(closed).toBe(0);
});

test('no socket, no greeting, or nonsense: an error, never a client', async () => {
  await expect(QmpClient.connect({ path: `${path}.none`, onEvent: () => {}, onClose: () => {} })).rejects.toThrow(
    QmpDisconnected,
  );
  greet = null;
  await expect(connect(30)).rejects.toThrow(QmpTimeout);
  greet = 'SSH-2.0';
  await expect(connect()).rejects.toThrow(QmpDisconnected);
  greet = { hello: 1 };
  await expect(connect()).rejects.toThrow("doesn't speak QMP");
  expect(closed).toBe(0);
});

test('a capability that QEMU refuses ends the attempt', async () => {
  reply = ({ id }) => send({ error: { class: 'CommandNotFound', desc: 'no' }, id });
  await expect(connect()).rejects.toThrow(QmpError);
});
