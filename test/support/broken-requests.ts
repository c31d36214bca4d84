/** Requests that HTTP itself refuses, as they are on the wire, and what they are answered with. */
import { connect, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { HTTP_ERROR_CODES } from '../../platform/http/http-errors.ts';
import { eventually } from './wait.ts';

/** A server to send them to. */
export interface BrokenTarget {
  readonly url: string;
  /** The largest sum of headers, and the largest body, in bytes. */
  readonly headerBytes: number;
  readonly bodyBytes: number;
  /** A path that is there, and the methods that it takes. */
  readonly path: string;
  readonly allow: readonly string[];
  /** A path with one parameter, without it. */
  readonly parent: string;
  /** One that takes a body: its method. */
  readonly put: { readonly method: string; readonly path: string };
}

export interface BrokenRequest {
  readonly text: string;
  readonly status: number;
  readonly allow?: readonly string[];
}

const HOST = 'Host: 127.0.0.1';

/** What is refused before anybody asks who sends it. */
export function brokenRequests(target: BrokenTarget): Readonly<Record<string, BrokenRequest>> {
  const get = (path: string, ...headers: string[]) =>
    `GET ${path} HTTP/1.1\r\n${[HOST, 'Connection: close', ...headers].join('\r\n')}\r\n\r\n`;
  const { path, parent, put, headerBytes } = target;
  const putting = (...lines: string[]) => `${put.method} ${put.path} HTTP/1.1\r\n${HOST}\r\n${lines.join('\r\n')}\r\n`;
  const long = 'x'.repeat(headerBytes + 1_000);
  const broken: Record<string, BrokenRequest> = {
    'a path that is too long by itself': { text: get(`${path}/${long}`), status: 414 },
    'a query that is too long by itself': { text: get(`${path}?a=${long}`), status: 414 },
    'a name that is too long': { text: get(`${parent}/${'x'.repeat(101)}`), status: 414 },
    'headers that are too large': { text: get(path, `X-Long: ${long}`), status: 431 },
    'many headers that are too large': {
      text: get(path, ...Array.from({ length: headerBytes / 20 }, (_, at) => `X-${at}: ${'x'.repeat(30)}`)),
      status: 431,
    },
    'a bad escape': { text: get(`${parent}/%zz`), status: 400 },
    'an escape that is cut off': { text: get(`${parent}/%`), status: 400 },
    'an escape that is no UTF-8': { text: get(`${parent}/%ff`), status: 400 },
    'an escape of a surrogate': { text: get(`${parent}/%ed%a0%80`), status: 400 },
    'no HTTP at all': { text: '\u0016\u0003\u0001 hello\r\n\r\n', status: 400 },
    'a line of text': { text: 'hello\r\n\r\n', status: 400 },
    'HTTP/0.9': { text: 'GET /\r\n\r\n', status: 400 },
    'a preface of HTTP/2': { text: 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', status: 400 },
    'a version that there is not': { text: `GET ${path} HTTP/9.9\r\n${HOST}\r\n\r\n`, status: 400 },
    'a method that there is not': { text: `FETCH ${path} HTTP/1.1\r\n${HOST}\r\n\r\n`, status: 400 },
    'a method in small letters': { text: `get ${path} HTTP/1.1\r\n${HOST}\r\n\r\n`, status: 400 },
    'a path with a blank': { text: `GET ${path} x HTTP/1.1\r\n${HOST}\r\n\r\n`, status: 400 },
    'no host': { text: `GET ${path} HTTP/1.1\r\nConnection: close\r\n\r\n`, status: 400 },
    'two hosts': { text: get(path, 'Host: localhost'), status: 400 },
    'a header without a colon': { text: get(path, 'nonsense'), status: 400 },
    'a header with a NUL': { text: get(path, 'X-A: a\0b'), status: 400 },
    'a header with a bad name': { text: get(path, 'X A: a'), status: 400 },
    'a length that is no number': { text: putting('Content-Length: many', ''), status: 400 },
    'a length below zero': { text: putting('Content-Length: -1', ''), status: 400 },
    'two lengths': { text: putting('Content-Length: 2', 'Content-Length: 3', ''), status: 400 },
    'a length and chunks': {
      text: putting('Content-Length: 2', 'Transfer-Encoding: chunked', '', '0', ''),
      status: 400,
    },
    'a chunk of no size': {
      text: `${putting('Content-Type: application/json', 'Transfer-Encoding: chunked', '')}zz\r\n`,
      status: 400,
    },
    'an expectation that nobody can meet': { text: get(path, 'Expect: wonders'), status: 417 },
    'a tunnel': { text: `CONNECT example.com:443 HTTP/1.1\r\n${HOST}\r\n\r\n`, status: 405 },
  };
  for (const method of ['PATCH', 'OPTIONS', 'TRACE', 'PROPFIND', 'PURGE', 'LINK', 'DELETE', 'POST'])
    if (!target.allow.includes(method))
      broken[`the method ${method}`] = {
        text: `${method} ${path} HTTP/1.1\r\n${HOST}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`,
        status: 405,
        allow: target.allow,
      };
  return broken;
}

/** What is refused when the body is read: by then it is known who sends it. */
export function brokenBodies({ put, bodyBytes }: BrokenTarget): Readonly<Record<string, BrokenRequest>> {
  const send = (body: string, type = 'Content-Type: application/json', length = Buffer.byteLength(body)) =>
    `${put.method} ${put.path} HTTP/1.1\r\n${HOST}\r\nConnection: close\r\n${type}\r\nContent-Length: ${length}\r\n\r\n${body}`;
  const chunked = (body: string) =>
    `${put.method} ${put.path} HTTP/1.1\r\n${HOST}\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
  return {
    'JSON that is cut off': { text: send('{"a":'), status: 400 },
    'no JSON': { text: send('hello'), status: 400 },
    'JSON of another kind': { text: send('[1]'), status: 400 },
    XML: { text: send('<a/>', 'Content-Type: application/xml'), status: 415 },
    'a form': { text: send('a=1', 'Content-Type: application/x-www-form-urlencoded'), status: 415 },
    'a type that is none': { text: send('{}', 'Content-Type: nonsense'), status: 415 },
    'no type': { text: send('{}', 'X-A: a'), status: 415 },
    'a body that is announced too large': { text: send('', undefined, bodyBytes + 1), status: 413 },
    'a body that is too large': { text: send(`"${'x'.repeat(bodyBytes)}"`), status: 413 },
    'chunks that are too large': { text: chunked(`"${'x'.repeat(bodyBytes)}"`), status: 413 },
  };
}

export interface RawAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly text: string;
}

/** Sends what is on the wire, and reads until an answer is whole or the connection ends. Throws where none comes. */
export async function sendRaw(url: string, text: string): Promise<RawAnswer> {
  const { hostname, port, protocol } = new URL(url);
  const socket: Socket =
    protocol === 'https:'
      ? connectTls({ host: hostname, port: Number(port), rejectUnauthorized: false })
      : connect(Number(port), hostname);
  let received = '';
  let closed = false;
  socket.setEncoding('latin1');
  socket.on('data', (chunk) => {
    received += chunk;
  });
  socket.on('close', () => {
    closed = true;
  });
  socket.on('error', () => {});
  socket.write(text, 'latin1');
  try {
    await eventually(() => closed || read(received) !== null, `no answer to ${JSON.stringify(text.slice(0, 80))}`);
    const answer = read(received);
    if (answer === null)
      throw new Error(`no answer to ${JSON.stringify(text.slice(0, 80))}: ${JSON.stringify(received)}`);
    return answer;
  } finally {
    socket.destroy();
  }
}

/** An answer, once it is whole by its `Content-Length`. */
function read(received: string): RawAnswer | null {
  const at = received.indexOf('\r\n\r\n');
  if (at < 0) return null;
  const [first = '', ...lines] = received.slice(0, at).split('\r\n');
  const headers = Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
  );
  const text = received.slice(at + 4);
  if (text.length < Number(headers['content-length'] ?? 0)) return null;
  return { status: Number(first.split(' ')[1]), headers, text: Buffer.from(text, 'latin1').toString('utf8') };
}

/** What an answer that has our mark says; throws for one that has not. `code` writes an error code as the server does. */
export function readMark(
  { status, headers, text }: RawAnswer,
  code: (name: string) => string,
): { status: number; marked: true; allow: string[] | null } {
  const body = JSON.parse(text) as Record<string, unknown>;
  if (!/^[0-9a-f-]{36}$/.test(String(body.request_id)) || body.request_id !== headers['x-request-id'])
    throw new Error(`no request id, or two: ${text}, ${headers['x-request-id']}`);
  if (body.error_code !== code(HTTP_ERROR_CODES[status] ?? 'InvalidRequest'))
    throw new Error(`${status} with the code ${body.error_code}`);
  if (typeof body.message !== 'string' || body.message.length < 10) throw new Error(`no message: ${text}`);
  if (!headers['content-type']?.startsWith('application/json')) throw new Error(`not JSON: ${headers['content-type']}`);
  return { status, marked: true, allow: headers.allow?.split(', ').sort() ?? null };
}
