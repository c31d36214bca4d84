/** A piece of network that a test can cut: a TCP proxy that goes on holding connections, and passes nothing. */
import { connect, createServer, type Server, type Socket } from 'node:net';

/** `pass`; `cut`: nothing in either direction; `no-answers`: what is sent arrives, what is answered doesn't. */
export type ProxyMode = 'pass' | 'cut' | 'no-answers';

export class CuttableProxy {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #to: () => string | null;
  #mode: ProxyMode = 'pass';
  address = '';

  private constructor(to: () => string | null) {
    this.#to = to;
    this.#server = createServer((near) => this.#carry(near));
  }

  /** Listens on `ip`, and passes on to the `ip:port` that `to` names at each connection; to nobody where it names none. */
  static async open(ip: string, to: () => string | null): Promise<CuttableProxy> {
    const proxy = new CuttableProxy(to);
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once('error', reject);
      proxy.#server.listen(0, ip, resolve);
    });
    const bound = proxy.#server.address();
    proxy.address = `${ip}:${typeof bound === 'object' && bound !== null ? bound.port : 0}`;
    return proxy;
  }

  /** From now on; connections that lost bytes are broken when all passes again. */
  set(mode: ProxyMode): void {
    const mended = mode === 'pass' && this.#mode !== 'pass';
    this.#mode = mode;
    if (mended) for (const socket of this.#sockets) socket.destroy();
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #carry(near: Socket): void {
    this.#track(near);
    const to = this.#to();
    if (to === null) {
      near.destroy();
      return;
    }
    const at = to.lastIndexOf(':');
    const far = this.#track(connect(Number(to.slice(at + 1)), to.slice(0, at)));
    near.on('data', (bytes) => this.#mode !== 'cut' && far.write(bytes));
    far.on('data', (bytes) => this.#mode === 'pass' && near.write(bytes));
    // An end is traffic too: across a cut it does not pass.
    near.once('close', () => far.destroy());
    far.once('close', () => this.#mode === 'pass' && near.destroy());
  }

  #track(socket: Socket): Socket {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => this.#sockets.delete(socket));
    return socket;
  }
}
