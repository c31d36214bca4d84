/**
 * A proxy before PostgreSQL that counts: what a saga costs in round trips and transactions, whoever sends it. It reads
 * only the server's messages. Each `ReadyForQuery` ends one round trip; its status byte says whether a transaction is
 * still open. Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import { connect, createServer, type Socket } from 'node:net';

export interface PostgresCounts {
  readonly roundTrips: number;
  readonly transactions: number;
}

export interface PostgresProxy {
  /** The URL to use instead of the server's. */
  readonly url: string;
  counts(): PostgresCounts;
  close(): Promise<void>;
}

const READY_FOR_QUERY = 0x5a;
const IDLE = 0x49;

/** Starts a proxy before the PostgreSQL at `url`, which must take connections without TLS. Throws when it can't listen. */
export async function startPostgresProxy(url: string): Promise<PostgresProxy> {
  const { port: serverPort, hostname } = new URL(url);
  const through = new URL(url);
  let roundTrips = 0;
  let transactions = 0;
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const upstream = connect(Number(serverPort), hostname);
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream);
    upstream.pipe(client);
    let pending: Buffer = Buffer.alloc(0);
    let authenticated = false;
    upstream.on('data', (chunk: Buffer) => {
      pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
      while (pending.length >= 5) {
        const length = pending.readUInt32BE(1) + 1;
        if (pending.length < length) return;
        if (pending[0] === READY_FOR_QUERY) {
          // The first one means that the connection is ready: nobody asked anything yet.
          if (authenticated) {
            roundTrips += 1;
            if (pending[5] === IDLE) transactions += 1;
          }
          authenticated = true;
        }
        pending = pending.subarray(length);
      }
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const bound = server.address();
  through.port = String(typeof bound === 'object' && bound !== null ? bound.port : 0);
  through.hostname = '127.0.0.1';
  return {
    url: through.toString(),
    counts: () => ({ roundTrips, transactions }),
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
