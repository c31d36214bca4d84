/**
 * The network between a source VMM and its destination, in a test's hands: the agents' conversation, the guest's bytes from
 * QEMU to QEMU, and the connection to the source's agent all go through it, so that each can be held, cut, or broken.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { waitUntil } from '../../platform/host/child-process.ts';
import { loopbackAddress } from './sled.ts';

interface Line {
  hello?: { vmm_id: string; agent: string; agent_id?: string };
  fetch?: { uri: string };
  [kind: string]: unknown;
}

export class HandOverNetwork {
  /** Where the destination finds the source: to be given as `src_vmm_addr`. */
  address = '';
  /** The messages that the source sent to the destination, in order, held back or not. */
  readonly sourceMessages: string[] = [];
  /** As which agent the source has greeted. */
  sourceAgentId: string | undefined;
  /** How many of the guest's bytes may pass. */
  guestBytes = Number.POSITIVE_INFINITY;
  /** From this message of the source on, nothing of the conversation reaches the destination. */
  holdFrom: string | null = null;
  passed = 0;
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #ip = loopbackAddress();
  #cut = false;
  #holding = false;

  /** Stands between a source VMM at `ip:port` and whoever comes. */
  static async before(source: string): Promise<HandOverNetwork> {
    const network = new HandOverNetwork();
    network.address = await network.#serve((destination) => network.#converse(destination, source));
    return network;
  }

  /** From now on nothing passes in either direction, and no end notices: cables out. */
  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.pause();
  }

  /** New connections pass again; those that were cut stay dead. */
  mend(): void {
    this.#cut = false;
    this.holdFrom = null;
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Breaks every connection, for both ends to see. */
  break(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async untilGuestHalfSent(): Promise<void> {
    await waitUntil(() => this.passed >= this.guestBytes, 'half of the guest was never sent', 60_000, 5);
  }

  async untilSourceSent(kind: string): Promise<void> {
    await waitUntil(
      () => this.sourceMessages.includes(kind),
      `the source never sent ${kind}: ${this.sourceMessages}`,
      60_000,
      5,
    );
  }

  async close(): Promise<void> {
    this.break();
    await Promise.all(this.#servers.map((server) => new Promise((resolve) => server.close(resolve))));
  }

  #converse(destination: Socket, sourceAddress: string): void {
    const source = this.#track(dial(sourceAddress));
    tie(destination, source);
    createInterface({ input: source })
      .on('error', () => {})
      .on('line', async (text) => {
        const line = JSON.parse(text) as Line;
        const kind = Object.keys(line)[0] ?? '';
        if (kind !== 'alive') this.sourceMessages.push(kind);
        if (kind === this.holdFrom) this.#holding = true;
        if (this.#cut || this.#holding) return;
        if (line.hello !== undefined) {
          this.sourceAgentId = line.hello.agent_id;
          const { agent } = line.hello;
          line.hello.agent = await this.#serve((asker) => this.#forward(asker, dial(agent), () => true));
        }
        destination.write(`${JSON.stringify(line)}\n`);
      });
    createInterface({ input: destination })
      .on('error', () => {})
      .on('line', async (text) => {
        if (this.#cut) return;
        const line = JSON.parse(text) as Line;
        if (line.fetch !== undefined) {
          const uri = line.fetch.uri.slice('tcp:'.length);
          const address = await this.#serve((sender) =>
            this.#forward(sender, dial(uri), (bytes) => {
              this.passed += bytes;
              return this.passed < this.guestBytes;
            }),
          );
          line.fetch.uri = `tcp:${address}`;
        }
        source.write(`${JSON.stringify(line)}\n`);
      });
  }

  #forward(near: Socket, far: Socket, mayGoOn: (bytes: number) => boolean): void {
    this.#track(far);
    tie(near, far);
    near.on('data', (chunk) => {
      far.write(chunk);
      if (!mayGoOn(chunk.length)) near.pause();
    });
    far.on('data', (chunk) => near.write(chunk));
    if (this.#cut) {
      near.pause();
      far.pause();
    }
  }

  async #serve(take: (socket: Socket) => void): Promise<string> {
    const server = createServer((socket) => take(this.#track(socket)));
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, this.#ip, resolve));
    const bound = server.address();
    return `${this.#ip}:${typeof bound === 'object' ? bound?.port : 0}`;
  }

  #track(socket: Socket): Socket {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => this.#sockets.delete(socket));
    return socket;
  }
}

function dial(address: string): Socket {
  const at = address.lastIndexOf(':');
  return connect(Number(address.slice(at + 1)), address.slice(0, at));
}

function tie(one: Socket, other: Socket): void {
  one.once('close', () => other.destroy());
  other.once('close', () => one.destroy());
}
