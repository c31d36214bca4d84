/**
 * The network between the control plane and one sled agent: two small HTTP proxies, one in each direction, that delay,
 * duplicate, reorder and lose messages while the weather is bad. What befalls the n-th message of a link is drawn from
 * the seed.
 *
 * A message that is on its way when its sled agent dies is lost with the connection, as TCP would have it: it is not
 * handed to the agent that starts afterwards.
 */
import { setMaxListeners } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { Dice, type LinkDirection, streamSeed, type Weather } from './plan.ts';

/** How a message fares. */
export interface Fate {
  /** Before it is handed over, in milliseconds. */
  readonly delayMs: number;
  /** Before its answer is handed back, in milliseconds. */
  readonly answerDelayMs: number;
  /** After how many milliseconds it is handed over once more; `null`: it is not. */
  readonly againAfterMs: number | null;
  readonly lost: 'no' | 'request' | 'answer';
}

const FAIR: Fate = { delayMs: 0, answerDelayMs: 0, againAfterMs: null, lost: 'no' };

/** Draws the fate of a message. Uses the same number of draws whatever comes of it. */
export function drawFate(dice: Dice, weather: Weather): Fate {
  const delayMs = dice.chance(weather.delay) ? 1 : 0;
  const answered = dice.chance(weather.delay / 2) ? 1 : 0;
  const againAfterMs = dice.between(0, weather.maxDelayMs);
  const again = dice.chance(weather.duplicate);
  const loseRequest = dice.chance(weather.loseRequest);
  const loseAnswer = dice.chance(weather.loseAnswer);
  return {
    delayMs: Math.round(delayMs * dice.between(0, weather.maxDelayMs)),
    answerDelayMs: Math.round(answered * dice.between(0, weather.maxDelayMs)),
    againAfterMs: again ? Math.round(againAfterMs) : null,
    lost: loseRequest ? 'request' : loseAnswer ? 'answer' : 'no',
  };
}

export interface LinkCounts {
  messages: number;
  delayed: number;
  duplicated: number;
  lost: number;
}

export interface Link {
  /** `ip:port` at which senders find it. */
  readonly address: string;
  readonly counts: Readonly<LinkCounts>;
  /** Sets the weather; `null`: fair. */
  setWeather(weather: Weather | null): void;
  /** The receiver has died: what is on its way to it is lost. */
  cut(): void;
  close(): Promise<void>;
}

/**
 * Opens a link. `receiver` names, for each message, the `ip:port` that gets it, or `null` when nobody does. Throws when
 * it can't listen on `ip`.
 */
export async function openLink(options: {
  readonly ip: string;
  readonly seed: number;
  readonly name: string;
  readonly direction: LinkDirection;
  readonly receiver: () => string | null;
}): Promise<Link> {
  const dice = new Dice(streamSeed(options.seed, `${options.name}/${options.direction}`));
  const counts: LinkCounts = { messages: 0, delayed: 0, duplicated: 0, lost: 0 };
  const dispatcher = new Agent({ connections: 64, connect: { timeout: 2_000 } });
  const closed = new AbortController();
  // One listener for each message on its way.
  setMaxListeners(0, closed.signal);
  let weather: Weather | null = null;
  let epoch = 0;

  async function handOver(message: IncomingMessage, body: Buffer, sentIn: number) {
    const to = options.receiver();
    if (to === null || sentIn !== epoch) throw new Error('nobody is there');
    const type = message.headers['content-type'];
    const answer = await request(`http://${to}${message.url}`, {
      method: (message.method ?? 'GET') as 'GET' | 'PUT' | 'DELETE',
      dispatcher,
      signal: closed.signal,
      ...(body.length === 0 ? {} : { body, headers: { 'content-type': type ?? 'application/json' } }),
    });
    return { status: answer.statusCode, body: Buffer.from(await answer.body.arrayBuffer()) };
  }

  async function carry(message: IncomingMessage, reply: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of message) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const sentIn = epoch;
    const fate = weather === null ? FAIR : drawFate(dice, weather);
    counts.messages += 1;
    if (fate.delayMs + fate.answerDelayMs > 0) counts.delayed += 1;
    if (fate.lost !== 'no') counts.lost += 1;
    if (fate.lost === 'request') throw new Error('lost');
    await pause(fate.delayMs, undefined, { signal: closed.signal });
    if (fate.againAfterMs !== null) {
      counts.duplicated += 1;
      // Nobody hears the answer to a duplicate.
      void pause(fate.againAfterMs, undefined, { signal: closed.signal })
        .then(() => handOver(message, body, sentIn))
        .catch(() => {});
    }
    const answer = await handOver(message, body, sentIn);
    await pause(fate.answerDelayMs, undefined, { signal: closed.signal });
    if (fate.lost === 'answer') throw new Error('lost');
    reply.writeHead(answer.status, { 'content-type': 'application/json' }).end(answer.body);
  }

  const server = createServer((message, reply) => {
    // What goes wrong on the way is a broken connection to the sender, never an answer that nobody gave.
    carry(message, reply).catch(() => message.socket.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, options.ip, resolve);
  });
  const bound = server.address();
  return {
    address: `${options.ip}:${typeof bound === 'object' && bound !== null ? bound.port : 0}`,
    counts,
    setWeather(next) {
      weather = next;
    },
    cut() {
      epoch += 1;
    },
    async close() {
      closed.abort();
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      await dispatcher.destroy();
    },
  };
}
