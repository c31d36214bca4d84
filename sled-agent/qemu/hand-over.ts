/**
 * The messages between two agents when a guest moves between their QEMUs, in lines of JSON over TCP at the address of
 * the source VMM. The guest itself goes from QEMU to QEMU, at an address that the destination opens.
 *
 *   source → destination   {hello: {vmm_id, agent, agent_id?}}   whom to ask later, should this connection break
 *   destination → source   {fetch: {migration_id, instance_id, uri, shape}}
 *   source → destination   {begin}                        both sides are in progress
 *                          or {refused}                   nothing has happened
 *   source → destination   {paused: console's end}        the guest stands still
 *   source → destination   {yours, progress}              the commit point: the source never resumes after it
 *
 * Each side sends {alive} all the time: a side that receives nothing for long takes the connection for broken. Then the
 * source cancels, unless the guest has left; and the destination asks the source's agent, by the protocol of section 7 of
 * docs/design.md, until it knows who has the guest.
 */
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { request } from 'undici';
import { z } from 'zod';
import { readSourceStatus, type SourceStatus } from '../../model/hand-over.ts';
import {
  agentShownIn,
  errorBody,
  migrationProgress,
  NO_SUCH_INSTANCE,
  sledVmmState,
  socketAddress,
} from '../../wire/sled-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import { guarded } from '../guarded.ts';
import type { PeerTransport } from '../peer-transport.ts';
import { ACCELERATORS } from './qemu-program.ts';

const shape = z.object({
  machine: z.string(),
  accelerator: z.enum(ACCELERATORS),
  memoryMib: z.number(),
  ncpus: z.number(),
  cpuModel: z.string().nullable().default(null),
});

const fetchRequest = z.object({
  migration_id: uuid,
  instance_id: z.string(),
  uri: z.string().startsWith('tcp:'),
  shape,
});
/** What a destination asks of a source. */
export type FetchRequest = z.infer<typeof fetchRequest>;

/** What the two sides say to each other. */
export const handOverMessage = z.union([
  z.object({ hello: z.object({ vmm_id: uuid, agent: socketAddress, agent_id: uuid.optional() }) }),
  z.object({ fetch: fetchRequest }),
  z.object({ begin: z.literal(true) }),
  z.object({ refused: z.string() }),
  z.object({ paused: z.object({ endOffset: z.number().int().min(0), base64: z.string() }) }),
  z.object({ yours: z.literal(true), progress: migrationProgress.nullish() }),
  z.object({ alive: z.literal(true) }),
]);
export type HandOverMessage = z.infer<typeof handOverMessage>;

const ALIVE_EVERY_MS = 1_000;
/** How long a silent connection counts as alive by default, in milliseconds: longer than a busy agent ever pauses. */
export const SILENCE_MS = 15_000;
const DIAL_MS = 5_000;
const ASK_MS = 3_000;

/** One side of the conversation. What isn't understood, and silence, break it. */
export class HandOverPeer {
  readonly socket: Socket;
  readonly #alive: NodeJS.Timeout;
  readonly #silence: NodeJS.Timeout;

  /** `onMessage` gets the other side's messages, `onClose` the end, once. `silenceMs`: how long silence is no end, in milliseconds. */
  constructor(
    socket: Socket,
    silenceMs: number,
    onMessage: (message: HandOverMessage, peer: HandOverPeer) => void,
    onClose: (peer: HandOverPeer) => void,
  ) {
    this.socket = socket;
    socket.setNoDelay(true);
    // A socket's own time-out would count what is written as well, and every byte that never becomes a message.
    this.#silence = setTimeout(() => socket.destroy(), silenceMs);
    socket.on('error', () => {});
    socket.once('close', () => {
      clearInterval(this.#alive);
      clearTimeout(this.#silence);
      onClose(this);
    });
    this.#alive = setInterval(() => this.send({ alive: true }), ALIVE_EVERY_MS);
    this.#alive.unref();
    createInterface({ input: socket })
      .on('error', () => {})
      .on('line', (line) => {
        let message: HandOverMessage;
        try {
          message = handOverMessage.parse(JSON.parse(line));
        } catch {
          socket.destroy();
          return;
        }
        this.#silence.refresh();
        if ('alive' in message) return;
        // Who can't go on with a message breaks the conversation: then each side asks, or keeps what it has.
        guarded(
          () => socket.destroy(),
          () => onMessage(message, this),
        );
      });
  }

  /** Connects to a source VMM at `ip:port`. */
  static dial(
    transport: PeerTransport,
    address: string,
    silenceMs: number,
    onMessage: (message: HandOverMessage, peer: HandOverPeer) => void,
    onClose: () => void,
  ): HandOverPeer {
    const timer = setTimeout(() => socket.destroy(), DIAL_MS);
    const socket = transport.dial(address, () => clearTimeout(timer));
    socket.once('close', () => clearTimeout(timer));
    return new HandOverPeer(socket, silenceMs, onMessage, onClose);
  }

  /** Sends a message; one that meets no open connection is lost. */
  send(message: HandOverMessage): void {
    if (!this.socket.destroyed && !this.socket.connecting) this.socket.write(`${JSON.stringify(message)}\n`);
  }

  /** Breaks the connection. */
  close(): void {
    this.socket.destroy();
  }
}

/** A source VMM, and its agent at `ip:port`. */
export interface Source {
  readonly vmmId: string;
  readonly agent: string;
  /** That of the agent, which every answer of it shows; `null` where it has not said it. */
  readonly agentId: string | null;
}

/**
 * Asks the agent of a source VMM who has the guest of a migration. Never throws: an agent that doesn't answer, not by the
 * protocol, or as another one than the source's, is `unreachable`, which proves nothing.
 */
export async function askSource(
  transport: PeerTransport,
  { vmmId, agent, agentId }: Source,
  migrationId: string,
): Promise<SourceStatus> {
  const { origin, dispatcher } = transport.agentAt(agent);
  try {
    const { statusCode, headers, body } = await request(`${origin}/vmms/${vmmId}/state`, {
      ...(dispatcher === null ? {} : { dispatcher }),
      signal: AbortSignal.timeout(ASK_MS),
      headersTimeout: ASK_MS,
      bodyTimeout: ASK_MS,
    });
    const answer: unknown = await body.json();
    // Whoever has the address by now knows nothing of the guest, which may run where it was.
    if (agentId !== null && agentShownIn(headers) !== agentId) return 'unreachable';
    if (statusCode === 404 && errorBody.parse(answer).error_code === NO_SUCH_INSTANCE)
      return readSourceStatus(null, migrationId);
    if (statusCode !== 200) return 'unreachable';
    const { vmm_state, migration_out } = sledVmmState.parse(answer);
    return readSourceStatus(
      {
        state: vmm_state.state,
        migrationOut:
          migration_out == null ? null : { migrationId: migration_out.migration_id, state: migration_out.state },
      },
      migrationId,
    );
  } catch {
    return 'unreachable';
  }
}
