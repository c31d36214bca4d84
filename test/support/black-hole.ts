/** Peers that take a connection and keep whoever waits for them: what a frozen process, a full buffer or a broken proxy is. */
import { createServer, type Server, type Socket } from 'node:net';

/**
 * `silent`: it reads, and never answers. `half`: it begins an answer, and no more comes. `trickle`: it begins one, and a crumb
 * of it comes time and again, for ever. `deaf`: it does not even read.
 */
export const SILENCES = ['silent', 'half', 'trickle', 'deaf'] as const;
export type Silence = (typeof SILENCES)[number];

/** How a protocol's answer begins, and a piece of it that can follow without end. */
export interface Beginning {
  readonly words: Buffer;
  readonly crumb: Buffer;
}

const CRUMB_EVERY_MS = 50;

export class BlackHole {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #timers = new Set<NodeJS.Timeout>();
  address = '';
  /** How many connections it has taken. */
  connections = 0;

  private constructor(silence: Silence, beginning: Beginning) {
    this.#server = createServer((socket) => {
      this.connections += 1;
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => this.#sockets.delete(socket));
      if (silence === 'deaf') return void socket.pause();
      socket.resume();
      if (silence === 'silent') return;
      socket.once('data', () => {
        socket.write(beginning.words);
        if (silence === 'half') return;
        const timer = setInterval(() => socket.write(beginning.crumb), CRUMB_EVERY_MS);
        this.#timers.add(timer);
        socket.once('close', () => clearInterval(timer));
      });
    });
  }

  /** Listens on a free port of 127.0.0.1. */
  static async open(silence: Silence, beginning: Beginning): Promise<BlackHole> {
    const hole = new BlackHole(silence, beginning);
    await new Promise<void>((resolve, reject) => {
      hole.#server.once('error', reject);
      hole.#server.listen(0, '127.0.0.1', resolve);
    });
    const bound = hole.#server.address();
    hole.address = `127.0.0.1:${typeof bound === 'object' && bound !== null ? bound.port : 0}`;
    return hole;
  }

  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** A JSON answer of which the most is missing. */
export const HTTP: Beginning = {
  words: Buffer.from('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{'),
  crumb: Buffer.from(' '),
};

/** PostgreSQL's message of one type. */
function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type, 0, 'latin1');
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}
/** A notice, as long as nothing is that anybody sends. */
const ENDLESS = Buffer.from('N');

/** A server that hangs while a connection is opened: it has asked for nothing yet. */
export const POSTGRES_OPENING: Beginning = { words: Buffer.from('N\x00'), crumb: ENDLESS };
/** One that lets everybody in, and hangs at the first question. */
export const POSTGRES_OPEN: Beginning = {
  words: Buffer.concat([message('R', Buffer.alloc(4)), message('Z', Buffer.from('I'))]),
  crumb: ENDLESS,
};
/** One that agrees to TLS, and hangs in its handshake. */
export const POSTGRES_TLS: Beginning = { words: Buffer.from('S'), crumb: Buffer.from([0x16]) };
/** An HTTP/2 server whose only word is that it is one. */
const SETTINGS_FRAME = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
export const GRPC: Beginning = { words: SETTINGS_FRAME, crumb: SETTINGS_FRAME };
/** A TLS server that never finishes its first record. */
export const TLS: Beginning = { words: Buffer.from([0x16, 3, 3, 0x40, 0]), crumb: Buffer.from([0]) };
