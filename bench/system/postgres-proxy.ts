/**
 * A proxy before PostgreSQL that counts: what a saga costs in round trips and transactions, whoever sends it. Each
 * `ReadyForQuery` of the server ends one round trip; its status byte says whether a transaction is still open. What was
 * asked is read from the client's messages, so that a count that is too high can be explained, and so that what a process
 * asks by itself is left out. Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
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
  /** Remembers from now on what each round trip that is counted asked; what is returned ends that and has the texts, oldest first. */
  record(): () => readonly string[];
  /**
   * Watches what is asked, while nothing is under way; what is returned ends that, and has the proxy leave such statements out
   * from then on: a library's polls. Of a transaction that begins like one of those nothing is counted.
   */
  learnIdleTraffic(): () => void;
  close(): Promise<void>;
}

export interface PostgresProxyOptions {
  /** Round trips that are passed on and not counted, by their statement; by default those of {@link isIdleTraffic}. */
  readonly leaveOut?: (statement: string) => boolean;
}

/** What ends a transaction says nothing of whose it was. */
const TRANSACTION_END = /^\s*(COMMIT|ROLLBACK|END)\b/i;
const READY_FOR_QUERY = 0x5a;
const IDLE = 0x49;

/** What a process asks by itself, by its statement: it costs per time, not per saga. */
const IDLE_TRAFFIC: readonly RegExp[] = [
  // The API listens for the outcomes of operations, and proves now and then that it hears.
  /^\s*LISTEN\b/,
  /^\s*SELECT pg_notify\(/,
  // Each connection asks for its settings as it is opened.
  /^\/\* open-session \*\//,
  // The migration watch looks once a second how far a migration is.
  /"migrationId"[\s\S]*WHERE m\.id = \$/,
];

/** Whether a statement is what a process asks by itself, from time to time. */
export function isIdleTraffic(statement: string): boolean {
  return IDLE_TRAFFIC.some((pattern) => pattern.test(statement));
}

/** Starts a proxy before the PostgreSQL at `url`, which must take connections without TLS. Throws when it can't listen. */
export async function startPostgresProxy(
  url: string,
  { leaveOut = isIdleTraffic }: PostgresProxyOptions = {},
): Promise<PostgresProxy> {
  const { port: serverPort, hostname } = new URL(url);
  const through = new URL(url);
  let roundTrips = 0;
  let transactions = 0;
  const recordings = new Set<string[]>();
  const learnt = new Set<string>();
  const record = () => {
    const recording: string[] = [];
    recordings.add(recording);
    return () => {
      recordings.delete(recording);
      return recording;
    };
  };
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
    const asked = new AskedStatements();
    let authenticated = false;
    let inTransactionLeftOut = false;
    const fromClient = new Messages(true, (type, body) => asked.read(type, body));
    const fromServer = new Messages(false, (type, body) => {
      if (type !== READY_FOR_QUERY) return;
      // The first one means that the connection is ready: nobody asked anything yet.
      if (!authenticated) {
        authenticated = true;
        return;
      }
      const statement = asked.answered();
      const leftOut = inTransactionLeftOut || leaveOut(statement) || learnt.has(statement);
      inTransactionLeftOut = leftOut && body[0] !== IDLE;
      if (leftOut) return;
      roundTrips += 1;
      if (body[0] === IDLE) transactions += 1;
      for (const recording of recordings) recording.push(statement);
    });
    // Read before it is passed on: what is asked is known before its answer can come.
    client.on('data', (chunk: Buffer) => fromClient.take(chunk));
    upstream.on('data', (chunk: Buffer) => fromServer.take(chunk));
    client.pipe(upstream);
    upstream.pipe(client);
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
    record,
    learnIdleTraffic() {
      const end = record();
      return () => {
        for (const statement of end()) if (!TRANSACTION_END.test(statement)) learnt.add(statement);
      };
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

/** Cuts one side's bytes into messages: a byte that names the type, a length that counts itself, the rest. */
class Messages {
  readonly #onMessage: (type: number, body: Buffer) => void;
  #pending: Buffer = Buffer.alloc(0);
  /** A client's first message has no type. */
  #startup: boolean;

  constructor(fromClient: boolean, onMessage: (type: number, body: Buffer) => void) {
    this.#startup = fromClient;
    this.#onMessage = onMessage;
  }

  take(chunk: Buffer): void {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    for (;;) {
      const header = this.#startup ? 4 : 5;
      if (this.#pending.length < header) return;
      const end = this.#pending.readUInt32BE(header - 4) + header - 4;
      if (this.#pending.length < end) return;
      const type = this.#startup ? 0 : (this.#pending[0] ?? 0);
      this.#startup = false;
      const body = this.#pending.subarray(header, end);
      this.#pending = this.#pending.subarray(end);
      this.#onMessage(type, body);
    }
  }
}

/** What a client asks over one connection, in the order in which it will be answered. */
class AskedStatements {
  readonly #unanswered: string[] = [];
  /** The texts of prepared statements, by the name that the client gave them; the last unnamed one by ''. */
  readonly #prepared = new Map<string, string>();
  #parsed: string[] = [];
  #bound: string[] = [];

  /** Reads a message of the client's. */
  read(type: number, body: Buffer): void {
    const at = (from: number) => {
      const end = body.indexOf(0, from);
      return { text: body.toString('utf8', from, end), end: end + 1 };
    };
    switch (String.fromCharCode(type)) {
      case 'Q':
        this.#unanswered.push(at(0).text);
        return;
      case 'F':
        this.#unanswered.push('a function call');
        return;
      case 'P': {
        const name = at(0);
        const { text } = at(name.end);
        this.#prepared.set(name.text, text);
        this.#parsed.push(text);
        return;
      }
      case 'B': {
        const name = at(at(0).end).text;
        this.#bound.push(this.#prepared.get(name) ?? `the prepared statement ${name}`);
        return;
      }
      case 'S':
        // Several statements may be sent before one answer is waited for.
        this.#unanswered.push((this.#bound.length > 0 ? this.#bound : this.#parsed).join('; '));
        this.#parsed = [];
        this.#bound = [];
    }
  }

  /** What the answer that has just ended was to. */
  answered(): string {
    return this.#unanswered.shift() ?? 'unknown';
  }
}

/** A statement in short: its tag, the comment that it begins with; where it has none, its first words. */
export function shortStatement(statement: string): string {
  const tag = /^\s*\/\*\s*(.*?)\s*\*\//.exec(statement)?.[1];
  const words = statement.replaceAll(/\s+/g, ' ').trim();
  return tag ?? (words.length > 100 ? `${words.slice(0, 100)}…` : words);
}
