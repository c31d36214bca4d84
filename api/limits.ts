/** Where the API may listen, and how much one caller may ask of it. */
import rateLimit from '@fastify/rate-limit';
import type { FastifyInstance, FastifyRequest, FastifyServerOptions } from 'fastify';
import { Refusal } from '../model/refusal.ts';
import { isLoopback } from '../platform/host/loopback.ts';
import { HttpError, NODE_HTTP_OPTIONS, refusalOptions } from '../platform/http/http-errors.ts';
import type { AuthenticationMode } from './access.ts';
import { httpErrorBody } from './errors.ts';

export interface RequestLimits {
  /** The largest body, in bytes. */
  readonly bodyBytes: number;
  /** The largest sum of all headers, in bytes. */
  readonly headerBytes: number;
  /** How long the headers may take to arrive, in milliseconds. */
  readonly headersMs: number;
  /** How long a whole request may take to arrive, in milliseconds; not its answer, which may wait for a saga. */
  readonly requestMs: number;
  /** How many requests a token may send in a minute; `null` is unlimited. The local operator and sled agents may send any number. */
  readonly requestsPerMinute: number | null;
}

/** The requests of a token are far above what people and their programs send: 100 a second. */
export const DEFAULT_LIMITS: RequestLimits = {
  bodyBytes: 1024 * 1024,
  headerBytes: 16 * 1024,
  headersMs: 10_000,
  requestMs: 30_000,
  requestsPerMinute: 6_000,
};

/** How often connections are looked at that are too slow, in milliseconds, at most. */
const CHECK_CONNECTIONS_MS = 1_000;

/** The options of the HTTP server that hold a caller to the limits. */
export function limitOptions(
  limits: RequestLimits,
  tls: { readonly cert: string | Buffer; readonly key: string | Buffer } | undefined,
): FastifyServerOptions {
  const http = {
    ...NODE_HTTP_OPTIONS,
    maxHeaderSize: limits.headerBytes,
    headersTimeout: limits.headersMs,
    connectionsCheckingInterval: Math.min(CHECK_CONNECTIONS_MS, limits.headersMs),
  };
  return {
    bodyLimit: limits.bodyBytes,
    requestTimeout: limits.requestMs,
    ...(tls === undefined ? { http } : { https: { ...http, ...tls } }),
    ...refusalOptions(httpErrorBody),
  } as FastifyServerOptions;
}

/** Counts the requests of each token, and refuses more than the limit with 429 and `Retry-After`. */
export async function addRateLimit(app: FastifyInstance, { requestsPerMinute }: RequestLimits): Promise<void> {
  if (requestsPerMinute === null) return;
  await app.register(rateLimit, {
    max: requestsPerMinute,
    timeWindow: 60_000,
    // After the token has been looked at.
    hook: 'preParsing',
    allowList: (request) => request.caller?.kind !== 'operator',
    keyGenerator: (request) => (request.caller?.kind === 'operator' ? request.caller.token.id : request.ip),
    errorResponseBuilder: (_, { max, ttl }) =>
      new HttpError(429, `this token has sent ${max} requests within a minute: go on in ${Math.ceil(ttl / 1000)} s`),
  });
}

/** Throws for an address that would let others in unseen: without TLS tokens can be read on the way; without tokens, anybody may. */
export function checkListening(options: {
  readonly host: string;
  readonly authentication?: AuthenticationMode;
  readonly tls?: unknown;
  readonly insecure?: boolean;
}): void {
  if (isLoopback(options.host)) return;
  if (options.authentication === 'open')
    throw new Error(
      `authentication "open" lets everybody in who reaches ${options.host}: listen on 127.0.0.1, or use "tokens"`,
    );
  if (options.tls === undefined && options.insecure !== true)
    throw new Error(
      `listening on ${options.host} without TLS would send tokens in the clear: give --tls-cert and --tls-key, listen on 127.0.0.1 behind a proxy that has TLS, or say --insecure`,
    );
}

/** Throws for a request with a NUL character in any of its texts: PostgreSQL's can't hold one. */
export function refuseNul(request: FastifyRequest): void {
  for (const [where, value] of Object.entries({ path: request.params, query: request.query, body: request.body }))
    if (holdsNul(value)) throw Refusal.invalid(`${where}: holds a NUL character, which no name or text may have`);
}

/** Without recursion: what is sent may be nested deeper than the stack is. */
function holdsNul(value: unknown): boolean {
  const open = [value];
  while (open.length > 0) {
    const next = open.pop();
    if (typeof next === 'string' && next.includes('\0')) return true;
    if (typeof next === 'object' && next !== null) for (const entry of Object.entries(next)) open.push(...entry);
  }
  return false;
}
