/**
 * A pooler in transaction mode, as PgBouncer before 1.21 is: a client has a server connection only for as long as a transaction
 * lasts, and gets another one the next time, with whatever its last user left there. It keeps the settings of
 * {@link TRACKED} for each client, refuses those that it doesn't know at the start, delivers no notifications, and knows nothing
 * of prepared statements. Source: https://www.pgbouncer.org/features.html and its client.c.
 */
import { randomInt } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import pg from 'pg';

const TRACKED = ['client_encoding', 'datestyle', 'timezone', 'standard_conforming_strings', 'application_name'];
const ALWAYS = ['user', 'database', 'replication'];
const SSL_REQUEST = 80_877_103;
const CANCEL_REQUEST = 80_877_102;

export interface PoolerOptions {
  /** How many connections it holds to PostgreSQL. */
  readonly size: number;
  /** Start-up parameters that it takes and forgets (`ignore_startup_parameters`). */
  readonly ignored?: readonly string[];
}

/** A connection to PostgreSQL that it holds. */
interface ServerConnection {
  readonly socket: Socket;
  /** What was last said of its settings. */
  readonly settings: Map<string, string>;
  user: ClientConnection | null;
}

export class TransactionPooler {
  readonly #server: Server;
  readonly #connections: ServerConnection[] = [];
  readonly #clients = new Set<ClientConnection>();
  readonly #waiting: ClientConnection[] = [];
  readonly #ignored: readonly string[];
  url = '';
  /** The start-up parameters that it has refused. */
  readonly refused = new Set<string>();

  private constructor(options: PoolerOptions) {
    this.#ignored = (options.ignored ?? []).map((name) => name.toLowerCase());
    this.#server = createServer((socket) => {
      const client = new ClientConnection(socket, this);
      this.#clients.add(client);
      socket.once('close', () => this.#clients.delete(client));
    });
  }

  /** Opens one before the PostgreSQL at `url`. */
  static async open(url: string, options: PoolerOptions): Promise<TransactionPooler> {
    const pooler = new TransactionPooler(options);
    for (let number = 0; number < options.size; number++) {
      const admin = new pg.Client({ connectionString: url });
      admin.on('error', () => {});
      await admin.connect();
      const { stream } = (admin as unknown as { connection: { stream: Socket } }).connection;
      // The driver has opened it; from now on what it says is passed on as it is.
      stream.removeAllListeners('data');
      const connection: ServerConnection = { socket: stream, settings: new Map(), user: null };
      const messages = new Messages((type, whole) => pooler.#answered(connection, type, whole));
      stream.on('data', (bytes: Buffer) => messages.take(bytes));
      pooler.#connections.push(connection);
    }
    await new Promise<void>((resolve, reject) => {
      pooler.#server.once('error', reject);
      pooler.#server.listen(0, '127.0.0.1', resolve);
    });
    const bound = pooler.#server.address();
    const through = new URL(url);
    through.hostname = '127.0.0.1';
    through.port = String(typeof bound === 'object' && bound !== null ? bound.port : 0);
    pooler.url = through.href;
    return pooler;
  }

  async close(): Promise<void> {
    for (const { socket } of this.#clients) socket?.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    for (const { socket } of this.#connections) socket.destroy();
  }

  /** The first start-up parameter of a client that is not taken; `null` when all are. */
  refusal(parameters: ReadonlyMap<string, string>): string | null {
    const taken = new Set([...TRACKED, ...ALWAYS, ...this.#ignored]);
    const found = [...parameters.keys()].find((name) => !taken.has(name.toLowerCase()));
    if (found !== undefined) this.refused.add(found);
    return found ?? null;
  }

  /** Gives a client a server connection, the one that was used last, or has it wait for one. */
  assign(client: ClientConnection): void {
    const free = this.#connections.find(({ user }) => user === null);
    if (free === undefined) {
      if (!this.#waiting.includes(client)) this.#waiting.push(client);
      return;
    }
    this.#connections.splice(this.#connections.indexOf(free), 1);
    this.#connections.unshift(free);
    free.user = client;
    client.server = free;
    for (const [name, value] of client.settings) {
      if (free.settings.get(name) === value) continue;
      free.settings.set(name, value);
      client.hidden += 1;
      free.socket.write(message('Q', Buffer.from(`SET ${name} = '${value}'\0`)));
    }
    client.flush();
  }

  /** A client has left: what it has not finished is ended with its connection's transaction. */
  left(client: ClientConnection): void {
    const at = this.#waiting.indexOf(client);
    if (at >= 0) this.#waiting.splice(at, 1);
    const { server } = client;
    if (server === null) return;
    client.server = null;
    // PgBouncer would close it; what that comes to is the same.
    server.user = new ClientConnection(null, this);
    server.user.hidden = client.hidden + client.outstanding + 1;
    server.user.server = server;
    server.socket.write(message('Q', Buffer.from('ROLLBACK\0')));
  }

  #answered(connection: ServerConnection, type: string, whole: Buffer): void {
    const { user } = connection;
    // A word to nobody: a notification.
    if (user === null) return;
    if (user.hidden > 0) {
      if (type === 'Z') user.hidden -= 1;
      if (user.hidden === 0 && user.socket === null) this.#release(connection);
      return;
    }
    user.socket?.write(whole);
    if (type !== 'Z') return;
    user.outstanding -= 1;
    const isIdle = whole[5] === 'I'.charCodeAt(0);
    if (isIdle && user.outstanding === 0) this.#release(connection);
  }

  #release(connection: ServerConnection): void {
    if (connection.user !== null) connection.user.server = null;
    connection.user = null;
    const next = this.#waiting.shift();
    if (next !== undefined) this.assign(next);
  }
}

/** A client of the pooler. */
class ClientConnection {
  readonly socket: Socket | null;
  readonly settings = new Map<string, string>();
  server: ServerConnection | null = null;
  /** How many answers of the server are not this client's. */
  hidden = 0;
  /** How many answers this client waits for. */
  outstanding = 0;
  #kept: Buffer[] = [];
  #keptQuestions = 0;
  #started = false;

  constructor(socket: Socket | null, pooler: TransactionPooler) {
    this.socket = socket;
    if (socket === null) return;
    socket.on('error', () => {});
    socket.once('close', () => pooler.left(this));
    let opening: Buffer = Buffer.alloc(0);
    const messages = new Messages((type, whole) => {
      if (type === 'X') return void socket.end();
      this.#kept.push(whole);
      if (type === 'Q' || type === 'S' || type === 'F') this.#keptQuestions += 1;
      if (this.server !== null) this.flush();
      else if (this.#keptQuestions > 0) pooler.assign(this);
    });
    socket.on('data', (bytes: Buffer) => {
      if (this.#started) return messages.take(bytes);
      opening = Buffer.concat([opening, bytes]);
      if (opening.length < 8 || opening.length < opening.readInt32BE(0)) return;
      const length = opening.readInt32BE(0);
      const first = opening.subarray(0, length);
      opening = opening.subarray(length);
      this.#open(first, pooler);
      if (this.#started && opening.length > 0) messages.take(opening);
    });
  }

  /** Hands on what was said while there was no server connection. */
  flush(): void {
    this.outstanding += this.#keptQuestions;
    this.#keptQuestions = 0;
    for (const whole of this.#kept.splice(0)) this.server?.socket.write(whole);
  }

  #open(first: Buffer, pooler: TransactionPooler): void {
    const code = first.readInt32BE(4);
    if (code === SSL_REQUEST) return void this.socket?.write('N');
    if (code === CANCEL_REQUEST) return void this.socket?.end();
    const texts = first.subarray(8).toString('utf8').split('\0');
    const parameters = new Map<string, string>();
    for (let at = 0; at + 1 < texts.length && texts[at] !== ''; at += 2)
      parameters.set(texts[at] ?? '', texts[at + 1] ?? '');
    const refused = pooler.refusal(parameters);
    if (refused !== null) {
      const fields = ['SFATAL', 'VFATAL', 'C08P01', `Munsupported startup parameter: ${refused}`, ''];
      return void this.socket?.end(message('E', Buffer.from(`${fields.join('\0')}\0`)));
    }
    for (const [name, value] of parameters)
      if (TRACKED.includes(name.toLowerCase())) this.settings.set(name.toLowerCase(), value);
    this.#started = true;
    const key = Buffer.alloc(8);
    key.writeInt32BE(randomInt(2 ** 31), 0);
    this.socket?.write(
      Buffer.concat([message('R', Buffer.alloc(4)), message('K', key), message('Z', Buffer.from('I'))]),
    );
  }
}

function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type, 0, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

/** Cuts a stream of bytes into messages. */
class Messages {
  #rest: Buffer = Buffer.alloc(0);
  readonly #onMessage: (type: string, whole: Buffer) => void;

  constructor(onMessage: (type: string, whole: Buffer) => void) {
    this.#onMessage = onMessage;
  }

  take(bytes: Buffer): void {
    this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    while (this.#rest.length >= 5) {
      const length = this.#rest.readInt32BE(1) + 1;
      if (this.#rest.length < length) return;
      const whole = this.#rest.subarray(0, length);
      this.#rest = this.#rest.subarray(length);
      this.#onMessage(String.fromCharCode(whole[0] ?? 0), whole);
    }
  }
}
