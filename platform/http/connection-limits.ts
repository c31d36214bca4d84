/**
 * How many connections a server takes, and which it gives up for another one. Whoever reaches a port can open as many as he
 * likes and say nothing; each costs a file descriptor, without which the process could not do its own work. So a server has a
 * share of them; when that is taken, a connection on which nothing is being answered makes room for the new one: first those
 * that never sent a whole request, then those whose request or whose reading stands still, then those that wait for a next
 * request; of each the oldest of the address that has the most. Where all are being answered the new one is closed.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Server, Socket } from 'node:net';
import { type DescriptorReserve, processDescriptors } from '../host/descriptor-reserve.ts';

export interface ConnectionLimits {
  /** How long a connection may take until its first request has begun to be answered, TLS included, in milliseconds; default 15000. */
  readonly firstRequestMs?: number;
  /** The most connections, where that is less than the server's share of the process's descriptors. */
  readonly most?: number;
  readonly descriptors?: DescriptorReserve;
}

/** Longer than headers may take, which are refused with an answer. */
const FIRST_REQUEST_MS = 15_000;
/** The part of the process's descriptors that one server may take, and the most and the least that it is. */
const SHARE = 1 / 4;
const MOST = 16_384;
const LEAST = 4;
/** How many a server has while the process lives on its reserve. */
const MOST_IN_SHORTAGE = 8;
/** A connection that is younger is not given up for want of descriptors alone: its request may be on its way. */
const SHED_AFTER_MS = 1_000;

/** How many connections a server may have in a process that may open `limit` files. */
export function connectionShare(limit: number): number {
  return Math.min(MOST, Math.max(LEAST, Math.floor(limit * SHARE)));
}

interface Connection {
  readonly socket: Socket;
  readonly key: string;
  readonly address: string;
  /** When it came, or its last request did, by `performance.now()`. */
  since: number;
  /** The request that came last, and its answer. */
  last: { readonly request: IncomingMessage; readonly response: ServerResponse } | null;
  readonly firstRequest: NodeJS.Timeout;
}

/** In the order in which they are given up; `null`: it is being answered. */
const GIVEN_UP = ['silent', 'stuck', 'waiting'] as const;
type Use = (typeof GIVEN_UP)[number] | null;

function useOf({ last }: Connection): Use {
  if (last === null) return 'silent';
  const { request, response } = last;
  if (response.writableFinished || response.destroyed) return 'waiting';
  return !request.complete || response.writableEnded ? 'stuck' : null;
}

/** Holds a server, of HTTP or of HTTPS and not listening yet, to its share of the process's descriptors. */
export function limitConnections(server: Server, limits: ConnectionLimits = {}): void {
  const { firstRequestMs = FIRST_REQUEST_MS, most = MOST, descriptors = processDescriptors } = limits;
  /** By the two addresses of each, by which a request over TLS finds the connection below. In the order in which they came. */
  const connections = new Map<string, Connection>();
  const perAddress = new Map<string, number>();

  const allowed = () =>
    Math.min(most, descriptors.isScarce ? MOST_IN_SHORTAGE : connectionShare(descriptors.limit), MOST);
  // Beyond that Node closes them before anybody here sees them: one more than are kept, so that it can be chosen which.
  server.maxConnections = Math.min(most, connectionShare(descriptors.limit)) + 1;

  const giveUpOne = (): boolean => {
    const best = new Map<Use, Connection>();
    for (const connection of connections.values()) {
      const use = useOf(connection);
      const before = best.get(use);
      if (before === undefined || countOf(connection) > countOf(before)) best.set(use, connection);
    }
    for (const use of GIVEN_UP) {
      const connection = best.get(use);
      if (connection === undefined) continue;
      giveUp(connection);
      return true;
    }
    return false;
  };
  const countOf = ({ address }: Connection) => perAddress.get(address) ?? 0;
  const giveUp = (connection: Connection) => {
    forget(connection);
    connection.socket.destroy();
  };
  const forget = (connection: Connection) => {
    clearTimeout(connection.firstRequest);
    if (connections.get(connection.key) !== connection) return;
    connections.delete(connection.key);
    const left = countOf(connection) - 1;
    if (left > 0) perAddress.set(connection.address, left);
    else perAddress.delete(connection.address);
  };

  server.on('connection', (socket: Socket) => {
    const key = keyOf(socket);
    // It has gone already.
    const address = socket.remoteAddress;
    if (key === null || address === undefined) return void socket.destroy();
    while (connections.size >= allowed()) if (!giveUpOne()) return void socket.destroy();
    const connection: Connection = {
      socket,
      key,
      address,
      since: performance.now(),
      last: null,
      firstRequest: setTimeout(() => giveUp(connection), firstRequestMs),
    };
    connection.firstRequest.unref();
    connections.set(key, connection);
    perAddress.set(address, countOf(connection) + 1);
    socket.once('close', () => forget(connection));
  });
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    const key = keyOf(request.socket);
    const connection = key === null ? undefined : connections.get(key);
    if (connection === undefined) return;
    clearTimeout(connection.firstRequest);
    connection.since = performance.now();
    connection.last = { request, response };
  });
  const shed = () => {
    const before = performance.now() - SHED_AFTER_MS;
    for (const connection of [...connections.values()]) {
      const use = useOf(connection);
      if (use !== null && use !== 'waiting' && connection.since < before) giveUp(connection);
    }
  };
  const stopShedding = descriptors.onShortage(shed);
  server.once('close', stopShedding);
}

function keyOf({ remoteAddress, remotePort, localAddress, localPort }: Socket): string | null {
  return remoteAddress === undefined ? null : [remoteAddress, remotePort, localAddress, localPort].join(' ');
}
