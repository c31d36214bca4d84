/**
 * Follows `GET /v1/events` (docs/events.md) and goes on where it was when the connection breaks. By `fetch`, since an
 * `EventSource` can carry no token but in a cookie or an address.
 */

import { EventParser, type RawEvent } from '../../model/event-parser.ts';
import { ApiProblem, messageOf, problemOf, send } from './client.ts';

/** After so long without a byte the connection is dead, in milliseconds: the API sends a comment every 15 s. */
const SILENT_MS = 40_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 10_000;
/** After so long a connection was a good one, in milliseconds. */
const LIVED_MS = 5_000;
/** A page that nobody sees lets go of its stream after this, in milliseconds: browsers have six connections to a host. */
const HIDDEN_MS = 30_000;

/** How the stream is. */
export type StreamState =
  | { readonly state: 'connecting' }
  | { readonly state: 'live' }
  /** Nobody sees the page. */
  | { readonly state: 'resting' }
  | { readonly state: 'broken'; readonly why: string };

/** What a follower is told. */
export interface StreamFollower {
  /** Called with the events of each piece that arrived, in order. */
  readonly onEvents: (events: readonly RawEvent[]) => void;
  readonly onState: (state: StreamState) => void;
}

/** Follows the stream until the signal is aborted, or the session is over (401). Never throws. */
export async function followEvents({ onEvents, onState }: StreamFollower, signal: AbortSignal): Promise<void> {
  let cursor: string | null = null;
  let pauseMs = FIRST_PAUSE_MS;
  onState({ state: 'connecting' });
  while (!signal.aborted) {
    const connection = new AbortController();
    const rest = restWhenHidden(connection, signal);
    let liveSince = Number.POSITIVE_INFINITY;
    try {
      const headers: Record<string, string> = { accept: 'text/event-stream' };
      if (cursor !== null) headers['last-event-id'] = cursor;
      const response = await send(
        new Request(new URL('/v1/events', location.origin), {
          headers,
          signal: AbortSignal.any([signal, connection.signal]),
        }),
      );
      if (response.status === 401) return;
      if (!response.ok || response.body === null) throw await problemOf(response);
      onState({ state: 'live' });
      liveSince = performance.now();
      for await (const { events, lastId } of readEvents(response.body, connection)) {
        if (events.length > 0) onEvents(events);
        cursor = lastId ?? cursor;
      }
      throw new ApiProblem(0, 'the API has ended the stream');
    } catch (error) {
      if (signal.aborted) return;
      if (rest.isResting()) {
        onState({ state: 'resting' });
        await rest.untilSeen();
        continue;
      }
      onState({ state: 'broken', why: messageOf(error) });
      // One that breaks as soon as it lives is not worth another hurry.
      if (performance.now() > liveSince + LIVED_MS) pauseMs = FIRST_PAUSE_MS;
      await pause(pauseMs, signal);
      pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2);
    } finally {
      rest.end();
      connection.abort();
    }
  }
}

async function* readEvents(
  body: ReadableStream<Uint8Array>,
  connection: AbortController,
): AsyncGenerator<{ events: RawEvent[]; lastId: string | null }> {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  for (;;) {
    const silent = setTimeout(() => connection.abort(), SILENT_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done) return;
    yield { events: parser.take(decoder.decode(value, { stream: true })), lastId: parser.lastId };
  }
}

/** Cuts a connection when nobody has seen the page for a while. */
function restWhenHidden(connection: AbortController, signal: AbortSignal) {
  let resting = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = () => {
    clearTimeout(timer);
    if (document.visibilityState !== 'hidden') return;
    timer = setTimeout(() => {
      resting = true;
      connection.abort();
    }, HIDDEN_MS);
  };
  document.addEventListener('visibilitychange', look);
  look();
  return {
    isResting: () => resting,
    untilSeen: () =>
      new Promise<void>((resolve) => {
        const seen = () => {
          if (document.visibilityState === 'hidden' && !signal.aborted) return;
          document.removeEventListener('visibilitychange', seen);
          resolve();
        };
        document.addEventListener('visibilitychange', seen);
        signal.addEventListener('abort', seen, { once: true });
        seen();
      }),
    end: () => {
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', look);
    },
  };
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
