/**
 * How many connections a server takes, and which it gives up for another one. Whoever reaches a port can open as many as he
 * likes and say nothing; each costs a file descriptor, without which the process could not do its own work. So a server has a
 * share of them; when that is taken, a connection on which nothing is being answered makes room for the new one: first those
 * that never sent a whole request, then those whose request or whose reading stands still, then those that wait for a next
 * request and were only ever refused, then those that were answered; of each the one that was used least recently, of whoever
 * has the most. One whose first request may be on its way, a TLS handshake say, gives way to no newcomer while others can,
 * but where such take more than their part: connections that say nothing must not drive out those that are asked on. Where all
 * are being answered the new one is closed.
 *
 * While the process has no descriptors left, who has been answered keeps what he has: a connection that is cut has its owner
 * open another, with a handshake, which is dearer than what was saved. Newcomers take the places of those that left, and a few more.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Server, Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { type DescriptorReserve, processDescriptors } from '../host/descriptor-reserve.ts';

export interface ConnectionLimits {
  /** How long a connection may take until its first request has begun to be answered, TLS included, in milliseconds; default 15000. */
  readonly firstRequestMs?: number;
  /** For how long it may be on its way without giving way to newcomers, in milliseconds; default 2000. */
  readonly youngMs?: number;
  /** The part of the process's descriptors that the server may take; default a quarter. See {@link SHARES}. */
  readonly share?: number;
  /** The most connections, where that is less than the server's share of the process's descriptors. */
  readonly most?: number;
  readonly descriptors?: DescriptorReserve;
}

/** Longer than headers may take, which are refused with an answer. */
const FIRST_REQUEST_MS = 15_000;
/**
 * The parts of a process's descriptors that its servers may take. Together they leave an API an eighth for itself; a sled agent
 * has more use for them than its callers.
 */
export const SHARES = { sleds: 5 / 8, operators: 3 / 16, metrics: 1 / 16, agent: 1 / 4 } as const;
/** The least that a server may take. */
const LEAST = 4;
/** Where the system sets no limit, what most set at the most. */
const UNLIMITED = 1_048_576;
/** How many a server has at the least while the process lives on its reserve, and how many newcomers beside those that it had. */
const LEAST_IN_SHORTAGE = 8;
const NEWCOMERS_IN_SHORTAGE = 4;
/** A connection is young for this long after it came, or its request did: the rest may be on its way. */
const YOUNG_MS = 2_000;
/** The part of a server's connections that young ones may take from those that were answered. */
const YOUNG_PART = 1 / 4;

/** How many connections a server with this share may have in a process that may open `limit` files. */
export function connectionShare(limit: number, share: number = SHARES.agent): number {
  return Math.max(LEAST, Math.floor(Math.min(limit, UNLIMITED) * share));
}

interface Connection {
  readonly socket: Socket;
  readonly key: string;
  /** Whose it is: the address, or the certificate where a good one was shown. */
  owner: string;
  /** When it came, or its last request did, by `performance.now()`. */
  since: number;
  /** The request that came last, and its answer. */
  last: { readonly request: IncomingMessage; readonly response: ServerResponse } | null;
  /** Whether a request before the last one was answered and not refused. */
  wasServed: boolean;
  /** Whether it came while there were no descriptors. */
  isLate: boolean;
  readonly firstRequest: NodeJS.Timeout;
}

/** What a connection is good for; the first three are cut where the process has no descriptors left. */
type Rank = 'silent' | 'stuck' | 'refused' | 'young' | 'served';

/** `null`: it is being answered. */
function rankOf(connection: Connection, youngSince: number): Rank | null {
  const use = useOf(connection);
  if (use === null) return null;
  const isServed = connection.wasServed || wasServed(connection);
  if (use === 'waiting') return isServed ? 'served' : 'refused';
  if (connection.since <= youngSince) return use;
  return isServed ? null : 'young';
}

function wasServed({ last }: Connection): boolean {
  return last?.response.writableFinished === true && last.response.statusCode < 400;
}

function useOf({ last }: Connection): 'silent' | 'stuck' | 'waiting' | null {
  if (last === null) return 'silent';
  const { request, response } = last;
  if (response.writableFinished || response.destroyed) return 'waiting';
  return !request.complete || response.writableEnded ? 'stuck' : null;
}

/** Holds a server, of HTTP or of HTTPS and not listening yet, to its share of the process's descriptors. */
export function limitConnections(server: Server, limits: ConnectionLimits = {}): void {
  const { firstRequestMs = FIRST_REQUEST_MS, youngMs = YOUNG_MS } = limits;
  const { most = Number.POSITIVE_INFINITY, descriptors = processDescriptors } = limits;
  /** By the two addresses of each, by which a request over TLS finds the connection below. In the order in which they came. */
  const connections = new Map<string, Connection>();
  const perOwner = new Map<string, number>();
  /** How many there were as the descriptors ran out; `null` while there are some, or nobody came since. */
  let had: number | null = null;

  const ownShare = () => Math.min(most, connectionShare(descriptors.limit, limits.share));
  const allowed = () => {
    if (!descriptors.isScarce) had = null;
    else if (had === null) {
      had = connections.size;
      for (const connection of connections.values()) connection.isLate = false;
    }
    return had === null ? ownShare() : Math.min(ownShare(), Math.max(LEAST_IN_SHORTAGE, had + NEWCOMERS_IN_SHORTAGE));
  };
  // Beyond that Node closes them before anybody here sees them: one more than are kept, so that it can be chosen which.
  server.maxConnections = ownShare() + 1;

  const giveUpOne = (room: number): boolean => {
    const youngSince = performance.now() - youngMs;
    const isShort = descriptors.isScarce;
    const best = new Map<Rank, Connection>();
    let young = 0;
    for (const connection of connections.values()) {
      const rank = rankOf(connection, youngSince);
      if (rank === 'young') young += 1;
      if (rank === null || (rank === 'served' && isShort && !connection.isLate)) continue;
      const before = best.get(rank);
      if (before === undefined || goesBefore(connection, before)) best.set(rank, connection);
    }
    const areTooMany = young > Math.floor((isShort ? LEAST_IN_SHORTAGE : room) * YOUNG_PART);
    const first = areTooMany ? best.get('young') : undefined;
    const chosen =
      best.get('silent') ??
      best.get('stuck') ??
      best.get('refused') ??
      first ??
      best.get('served') ??
      best.get('young');
    if (chosen !== undefined) giveUp(chosen);
    return chosen !== undefined;
  };
  const countOf = ({ owner }: Pick<Connection, 'owner'>) => perOwner.get(owner) ?? 0;
  const goesBefore = (one: Connection, other: Connection) =>
    countOf(one) > countOf(other) || (countOf(one) === countOf(other) && one.since < other.since);
  const count = (owner: string, more: 1 | -1) => {
    const now = countOf({ owner }) + more;
    if (now > 0) perOwner.set(owner, now);
    else perOwner.delete(owner);
  };
  const giveUp = (connection: Connection) => {
    forget(connection);
    connection.socket.destroy();
  };
  const forget = (connection: Connection) => {
    clearTimeout(connection.firstRequest);
    if (connections.get(connection.key) !== connection) return;
    connections.delete(connection.key);
    count(connection.owner, -1);
  };

  server.on('connection', (socket: Socket) => {
    const key = keyOf(socket);
    // It has gone already.
    const address = socket.remoteAddress;
    if (key === null || address === undefined) return void socket.destroy();
    for (let room = allowed(); connections.size >= room; ) if (!giveUpOne(room)) return void socket.destroy();
    const connection: Connection = {
      socket,
      key,
      owner: address,
      since: performance.now(),
      last: null,
      wasServed: false,
      isLate: descriptors.isScarce,
      firstRequest: setTimeout(() => giveUp(connection), firstRequestMs),
    };
    connection.firstRequest.unref();
    connections.set(key, connection);
    count(address, 1);
    socket.once('close', () => forget(connection));
  });
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const key = keyOf(request.socket);
    const connection = key === null ? undefined : connections.get(key);
    if (connection === undefined) return;
    clearTimeout(connection.firstRequest);
    if (connection.last === null) {
      count(connection.owner, -1);
      connection.owner = certificateOf(request.socket) ?? connection.owner;
      count(connection.owner, 1);
    }
    connection.wasServed ||= wasServed(connection);
    connection.since = performance.now();
    connection.last = { request, response };
  });
  const shed = () => {
    // A shortage begins, or goes on: what was counted in an earlier one is over.
    if (!descriptors.isScarce) had = null;
    const youngSince = performance.now() - youngMs;
    for (const connection of [...connections.values()]) {
      const rank = rankOf(connection, youngSince);
      const isIdle = rank === 'silent' || rank === 'stuck' || rank === 'refused';
      if (isIdle && connection.since <= youngSince) giveUp(connection);
    }
  };
  const stopShedding = descriptors.onShortage(shed);
  server.once('close', stopShedding);
}

function keyOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string | null {
  return remoteAddress === undefined ? null : [remoteAddress, remotePort, localAddress, localPort].join(' ');
}

/** The certificate that a caller has shown and that is good; `null` where there is none. */
function certificateOf(socket: Socket): string | null {
  const { authorized, getPeerX509Certificate } = socket as Partial<TLSSocket>;
  if (authorized !== true) return null;
  return getPeerX509Certificate?.call(socket)?.fingerprint256 ?? null;
}
