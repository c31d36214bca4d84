/**
 * The network between the control plane and one sled agent: two small HTTP proxies, one in each direction, that delay,
 * duplicate, reorder and lose messages while the weather is bad, answer in the receiver's place, or pass nothing. What
 * befalls the n-th message of a link is drawn from the seed.
 *
 * A message that is on its way when its sled agent dies is lost with the connection, as TCP would have it: it is not
 * handed to the agent that starts afterwards.
 */
import { setMaxListeners } from 'node:events';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { Dice, type Impostor, type LinkDirection, streamSeed, type Weather } from './plan.ts';

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

/** What somebody who is neither a sled nor the control plane answers. */
const PAGES: Readonly<Record<Impostor['body'], { headers: Record<string, string>; body: Buffer }>> = {
  html: {
    headers: { 'content-type': 'text/html' },
    body: Buffer.from('<!DOCTYPE html><html><head><title>default backend</title></head><body></body></html>'),
  },
  json: {
    headers: { 'content-type': 'application/json' },
    body: Buffer.from('{"message":"no Route matched with those values"}'),
  },
  nothing: { headers: {}, body: Buffer.alloc(0) },
};

/** What concerns one connection alone, or is made anew for the next one. */
const OF_ONE_HOP: ReadonlySet<string> = new Set([
  ...['connection', 'keep-alive', 'transfer-encoding', 'content-length', 'host', 'expect', 'upgrade'],
]);

/** The headers that a proxy passes on: whatever either side marks its messages with. */
function passedOn(headers: IncomingHttpHeaders): Record<string, string | string[]> {
  return Object.fromEntries(
    Object.entries(headers).filter((entry): entry is [string, string | string[]] => {
      const [name, value] = entry;
      return value !== undefined && !OF_ONE_HOP.has(name);
    }),
  );
}

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
  /** Answered by somebody else. */
  usurped: number;
}

export interface Link {
  /** `ip:port` at which senders find it. */
  readonly address: string;
  readonly counts: Readonly<LinkCounts>;
  /** Sets the weather; `null`: fair. */
  setWeather(weather: Weather | null): void;
  /** Sets who answers in the receiver's place; `null`: nobody. */
  setImpostor(impostor: Impostor | null): void;
  /** Whether messages pass at all; those that don't are held until they do, and are lost then. */
  setOpen(open: boolean): void;
  /** Fair weather, nobody between, open. */
  heal(): void;
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
  const counts: LinkCounts = { messages: 0, delayed: 0, duplicated: 0, lost: 0, usurped: 0 };
  const dispatcher = new Agent({ connections: 64, connect: { timeout: 2_000 } });
  const closed = new AbortController();
  // One listener for each message on its way.
  setMaxListeners(0, closed.signal);
  let weather: Weather | null = null;
  let impostor: Impostor | null = null;
  let opened: Promise<void> | null = null;
  let open = () => {};
  let epoch = 0;

  async function handOver(message: IncomingMessage, body: Buffer, sentIn: number) {
    const to = options.receiver();
    if (to === null || sentIn !== epoch) throw new Error('nobody is there');
    const answer = await request(`http://${to}${message.url}`, {
      method: (message.method ?? 'GET') as 'GET' | 'PUT' | 'DELETE',
      dispatcher,
      signal: closed.signal,
      headers: passedOn(message.headers),
      ...(body.length === 0 ? {} : { body }),
    });
    return {
      status: answer.statusCode,
      headers: passedOn(answer.headers),
      body: Buffer.from(await answer.body.arrayBuffer()),
    };
  }

  /** Somebody else's answer; the message may reach its receiver all the same, whose own answer nobody hears. */
  async function usurp(one: Impostor, message: IncomingMessage, body: Buffer, sentIn: number, carried: boolean) {
    counts.usurped += 1;
    if (carried) await handOver(message, body, sentIn).catch(() => {});
    return { status: one.status, ...PAGES[one.body] };
  }

  async function carry(message: IncomingMessage, reply: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of message) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks);
    const sentIn = epoch;
    const fate = weather === null ? FAIR : drawFate(dice, weather);
    const between = impostor;
    const usurped = between !== null && dice.chance(between.share);
    const carried = between !== null && dice.chance(between.carried);
    counts.messages += 1;
    if (fate.delayMs + fate.answerDelayMs > 0) counts.delayed += 1;
    if (fate.lost !== 'no') counts.lost += 1;
    if (opened !== null) {
      await opened;
      throw new Error('lost');
    }
    if (fate.lost === 'request') throw new Error('lost');
    await pause(fate.delayMs, undefined, { signal: closed.signal });
    if (fate.againAfterMs !== null) {
      counts.duplicated += 1;
      // Nobody hears the answer to a duplicate.
      void pause(fate.againAfterMs, undefined, { signal: closed.signal })
        .then(() => handOver(message, body, sentIn))
        .catch(() => {});
    }
    const answer = await (between !== null && usurped
      ? usurp(between, message, body, sentIn, carried)
      : handOver(message, body, sentIn));
    await pause(fate.answerDelayMs, undefined, { signal: closed.signal });
    if (opened !== null) await opened;
    if (fate.lost === 'answer') throw new Error('lost');
    reply.writeHead(answer.status, answer.headers).end(answer.body);
  }

  function setOpen(on: boolean): void {
    if (on) {
      open();
      opened = null;
    } else
      opened ??= new Promise((resolve) => {
        open = resolve;
      });
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
    setImpostor(next) {
      impostor = next;
    },
    setOpen,
    heal() {
      weather = null;
      impostor = null;
      setOpen(true);
    },
    cut() {
      epoch += 1;
    },
    async close() {
      closed.abort();
      setOpen(true);
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      await dispatcher.destroy();
    },
  };
}
