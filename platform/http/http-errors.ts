/**
 * `platform/http/` is what our HTTP servers have in common. What HTTP itself refuses never reaches a route: a request that can't
 * be parsed or comes too slowly, a path that can't be read or takes another method, a server that is about to end. Each is
 * answered in the server's own format, with the id of the request: whoever calls can tell it from what a proxy answers.
 */
import { randomUUID } from 'node:crypto';
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';

/** The error codes of what HTTP itself refuses, by status; what is not here is an invalid request. */
export const HTTP_ERROR_CODES: Readonly<Record<number, string>> = {
  404: 'NotFound',
  405: 'MethodNotAllowed',
  408: 'RequestTimeout',
  411: 'LengthRequired',
  413: 'PayloadTooLarge',
  414: 'UriTooLong',
  415: 'UnsupportedMediaType',
  417: 'ExpectationFailed',
  429: 'TooManyRequests',
  431: 'RequestHeaderFieldsTooLarge',
  503: 'ServiceUnavailable',
};

/** A request that HTTP itself refuses. */
export class HttpError extends Error {
  override readonly name = 'HttpError';
  readonly statusCode: number;

  /** `statusCode` is between 400 and 499, or 503. */
  constructor(statusCode: number, message: string) {
    super(message);
    this.statusCode = statusCode;
  }
}

/** Makes the body of the answer to a request that was refused. */
export type WriteErrorBody = (error: HttpError, requestId: string) => object;

/** The parts of a framework's request that this needs. */
interface ServedRequest {
  readonly id: string;
  readonly method: string;
  readonly url: string;
  readonly raw: IncomingMessage;
}
/** What Node reports of a request that it could not read. */
type BrokenRequest = Error & { readonly code?: string; readonly rawPacket?: unknown };

/** Options of a framework's server, by which it answers in our format what it refuses by itself. */
export function refusalOptions(body: WriteErrorBody) {
  return {
    genReqId: () => randomUUID(),
    // Refused by `refuseByHttp`, in our format.
    return503OnClosing: false,
    clientErrorHandler: (error: BrokenRequest, socket: Socket) => answerBrokenRequest(error, socket, body),
    frameworkErrors(
      error: Error & { statusCode?: number },
      { id }: Pick<ServedRequest, 'id'>,
      { raw }: { readonly raw: ServerResponse },
    ) {
      const refused =
        error.statusCode === 414
          ? new HttpError(414, 'the path is too long: no name or id in it has more than 100 characters')
          : new HttpError(400, 'the path can’t be read: a "%" must be followed by two hexadecimal digits of UTF-8');
      answer(raw, refused, id, body);
    },
  };
}

/** Options of Node's server below it: what it would refuse by itself, without a body, is refused by {@link refuseByHttp}. */
export const NODE_HTTP_OPTIONS = { requireHostHeader: false } as const;

/** What every request is asked before its route is. Throws an {@link HttpError}. `isClosing`: the server is about to end. */
export function refuseByHttp({ raw }: Pick<ServedRequest, 'raw'>, isClosing: boolean): void {
  if (isClosing) throw new HttpError(503, 'this server is about to end: send the request again, on a new connection');
  const hosts = raw.rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === 'host').length;
  if (hosts > 1 || (hosts === 0 && raw.httpVersion !== '1.0'))
    throw new HttpError(400, 'Host: a request of HTTP/1.1 has exactly one');
}

/** Adds what a server does with requests that no framework sees. `server` is Node's. */
export function answerUnseenRequests(
  server: {
    on(event: 'connect', listener: (request: IncomingMessage, socket: Socket) => void): unknown;
    on(event: 'checkExpectation', listener: (request: IncomingMessage, response: ServerResponse) => void): unknown;
  },
  body: WriteErrorBody,
): void {
  server.on('connect', (_, socket) =>
    answerOnSocket(socket, new HttpError(405, 'CONNECT is for proxies, and this is none'), body, {
      Allow: 'DELETE, GET, HEAD, POST, PUT',
    }),
  );
  server.on('checkExpectation', (request, response) => {
    const refused = new HttpError(
      417,
      `Expect: there is "100-continue", and not ${JSON.stringify(request.headers.expect)}`,
    );
    response.setHeader('connection', 'close');
    answer(response, refused, randomUUID(), body);
  });
}

/** The routes of a server by their paths, to tell a path that isn't there from one that takes other methods. */
export class RouteTable {
  readonly #routes: { readonly segments: string[]; readonly method: string }[] = [];

  /** Notes a route: its path has names of parameters with a colon. */
  add(methods: string | readonly string[], path: string): void {
    for (const method of [methods].flat()) this.#routes.push({ segments: path.split('/'), method });
  }

  /** Why there is no route for a request, and which methods its path has; none where there is no such path. */
  refuse({ method, url }: Pick<ServedRequest, 'method' | 'url'>): {
    readonly error: HttpError;
    readonly allow: string[];
  } {
    const path = url.replace(/^https?:\/\/[^/?#]*/i, '').replace(/[?#].*$/s, '');
    const segments = path.split('/').map(decoded);
    const matching = this.#routes.filter(
      (route) =>
        route.segments.length === segments.length &&
        route.segments.every((segment, at) =>
          segment.startsWith(':') ? segments[at] !== '' : segment === segments[at],
        ),
    );
    const allow = [...new Set(matching.map((route) => route.method))].sort();
    const error =
      allow.length === 0
        ? new HttpError(404, `no such endpoint: ${method} ${url}`)
        : new HttpError(405, `${path} takes no ${method}, but ${allow.join(', ')}`);
    return { error, allow };
  }
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

const JSON_TYPE = 'application/json; charset=utf-8';
/**
 * What every answer that is no page says to a browser: texts of others are in it, and it is not to take them for one, nor to run
 * or to frame anything.
 */
export const NO_PAGE_HEADERS = {
  'x-content-type-options': 'nosniff',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
} as const;
/** How long the other side has to read an answer before its connection is cut, in milliseconds. */
const LINGER_MS = 1_000;
const answered = new WeakSet<Socket>();

function answer(response: ServerResponse, error: HttpError, id: string, body: WriteErrorBody): void {
  const text = JSON.stringify(body(error, id));
  const head = {
    ...NO_PAGE_HEADERS,
    'content-type': JSON_TYPE,
    'content-length': Buffer.byteLength(text),
    'x-request-id': id,
  };
  response.writeHead(error.statusCode, head);
  response.end(text);
}

/** Answers what never became a request. */
function answerBrokenRequest(error: BrokenRequest, socket: Socket, body: WriteErrorBody): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return;
  answerOnSocket(socket, whatBroke(error, socket), body);
}

function whatBroke(error: BrokenRequest, socket: Socket): HttpError {
  if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return new HttpError(408, 'the request took too long to arrive: send it faster, or in smaller parts');
  if (error.code !== 'HPE_HEADER_OVERFLOW') return new HttpError(400, 'this is not HTTP: send a request of HTTP/1.1');
  // The limit is on all that comes before the body, and the first line may be it.
  const packet = Buffer.isBuffer(error.rawPacket) ? error.rawPacket : undefined;
  const firstLine = packet?.indexOf('\r\n') ?? 0;
  return packet !== undefined && packet.length === socket.bytesRead && (firstLine < 0 || firstLine > packet.length / 2)
    ? new HttpError(414, 'the path and its query are too long: send fewer, or shorter ones')
    : new HttpError(431, 'the headers are too large: send fewer, or shorter ones');
}

/** Writes an answer where there is no response to write it to, once, and ends the connection. */
function answerOnSocket(
  socket: Socket,
  error: HttpError,
  body: WriteErrorBody,
  headers: Readonly<Record<string, string>> = {},
): void {
  if (answered.has(socket)) return;
  answered.add(socket);
  socket.on('error', () => {});
  // Nothing is written into the middle of the answer to an earlier request. Source: `socketOnError` in Node's _http_server.js.
  const { _httpMessage: earlier } = socket as Socket & { readonly _httpMessage?: ServerResponse | null };
  if (!socket.writable || earlier?.headersSent) {
    socket.destroy();
    return;
  }
  const id = randomUUID();
  const text = JSON.stringify(body(error, id));
  const head = {
    ...headers,
    ...NO_PAGE_HEADERS,
    'Content-Type': JSON_TYPE,
    'Content-Length': String(Buffer.byteLength(text)),
    'X-Request-Id': id,
    Connection: 'close',
  };
  const lines = Object.entries(head).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.end(`HTTP/1.1 ${error.statusCode} ${STATUS_CODES[error.statusCode]}\r\n${lines.join('')}\r\n${text}`);
  // What is sent meanwhile is read: a connection that is cut with unread bytes may lose the answer.
  setTimeout(() => socket.destroy(), LINGER_MS).unref();
}
