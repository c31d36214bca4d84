/**
 * One reader of the stream. It is never waited for: what it has not taken yet is kept as the newest event of each object, and
 * when even that is too much, it is told to begin anew.
 */
import type { Writable } from 'node:stream';
import { type EndReason, type EventKind, FLEET_EVENT_KINDS, type ResetReason } from '../../wire/operator-api/events.ts';
import { COMMENT, writeEnd, writeId, writeReset } from './event-text.ts';
import type { ChangedObject } from './read-objects.ts';

/** What a reader may see, and asked for. */
export interface EventFilter {
  readonly kinds: ReadonlySet<EventKind>;
  /** Of the objects of projects, only those of this one; `null`: of all. */
  readonly projectId: string | null;
  /** Only what is about this instance; `null`: all. */
  readonly instanceId: string | null;
}

/** An event, written. */
export interface WrittenEvent {
  readonly changed: Pick<ChangedObject, 'kind' | 'id' | 'projectId' | 'instanceId'>;
  /** Without the empty line at its end. */
  readonly text: string;
}

/** Whether a reader is shown an object. Pure. */
export function shows(filter: EventFilter, { kind, projectId, instanceId }: WrittenEvent['changed']): boolean {
  if (!filter.kinds.has(kind)) return false;
  if (filter.instanceId !== null && instanceId !== filter.instanceId) return false;
  return filter.projectId === null || FLEET_EVENT_KINDS.has(kind) || projectId === filter.projectId;
}

/** The most objects that are kept for a reader that does not take them. */
const MOST_WAITING = 10_000;
/** How long a reader may take nothing, in milliseconds. */
const STUCK_MS = 60_000;
/** How much is given to the connection at once, in characters. */
const PIECE = 64 * 1024;

export class EventStream {
  readonly filter: EventFilter;
  /** The token by which it came; `null`: the local operator. */
  readonly tokenId: string | null;
  readonly #out: Writable;
  readonly #mostWaiting: number;
  /** By kind and id, oldest first: what it was not sent yet. */
  readonly #waiting = new Map<string, string>();
  /** The cursor after what waits; `null`: it has been sent. */
  #id: string | null = null;
  /** The cursor of what held nothing for it: sent with the next comment. */
  #quietId: string | null = null;
  /** What waited was too much: it must begin anew. */
  #isLost = false;
  /** Since when the connection takes nothing, by `performance.now()`; `null`: it takes. */
  #stuckSince: number | null = null;

  constructor(out: Writable, filter: EventFilter, tokenId: string | null, mostWaiting = MOST_WAITING) {
    this.#out = out;
    this.filter = filter;
    this.tokenId = tokenId;
    this.#mostWaiting = mostWaiting;
    out.on('drain', () => {
      this.#stuckSince = null;
      this.#flush();
    });
    out.on('error', () => {});
    this.#write(COMMENT);
  }

  /** Sends those of the events that it is shown, up to the cursor `id`. */
  send(all: readonly WrittenEvent[], id: string): void {
    const events = all.filter(({ changed }) => shows(this.filter, changed));
    if (this.#isLost || events.length > 0 || this.#waiting.size > 0) this.#id = id;
    else this.#quietId = id;
    if (this.#isLost) return;
    for (const { changed, text } of events) {
      const key = `${changed.kind} ${changed.id}`;
      // The newest goes last.
      this.#waiting.delete(key);
      this.#waiting.set(key, text);
    }
    if (this.#stuckSince !== null && this.#waiting.size > this.#mostWaiting) {
      this.#isLost = true;
      this.#waiting.clear();
    }
    this.#flush();
  }

  /** Tells it to begin anew: what it has got may have a gap before the cursor `id`. */
  reset(reason: ResetReason, id: string): void {
    this.#waiting.clear();
    this.#quietId = null;
    this.#isLost = this.#stuckSince !== null;
    this.#id = this.#isLost ? id : null;
    if (!this.#isLost) this.#write(writeReset(reason, id));
  }

  /** Keeps it alive, or cuts it where it has taken nothing for long. */
  beat(): void {
    if (this.#stuckSince !== null) {
      if (performance.now() - this.#stuckSince > STUCK_MS) this.#out.destroy();
      return;
    }
    this.#write(this.#quietId === null || this.#waiting.size > 0 ? COMMENT : writeId(this.#quietId));
    this.#quietId = null;
  }

  /** Says why it ends, and ends it; without a reason, only that. */
  end(reason: EndReason | null): void {
    if (this.#out.writableEnded) return;
    if (reason === null && this.#quietId !== null) this.#write(writeId(this.#quietId));
    this.#out.end(reason === null ? undefined : writeEnd(reason));
  }

  #flush(): void {
    if (this.#stuckSince !== null) return;
    if (this.#isLost && this.#id !== null) {
      const id = this.#id;
      this.#isLost = false;
      this.#id = null;
      this.#write(writeReset('slow', id));
      return;
    }
    let piece = '';
    for (const [key, text] of this.#waiting) {
      this.#waiting.delete(key);
      const isLast = this.#waiting.size === 0;
      piece += isLast && this.#id !== null ? text + writeId(this.#id) : `${text}\n`;
      if (isLast) {
        this.#id = null;
        this.#quietId = null;
      }
      if (piece.length < PIECE && !isLast) continue;
      this.#write(piece);
      piece = '';
      if (this.#stuckSince !== null) return;
    }
  }

  #write(text: string): void {
    if (this.#out.writableEnded || this.#out.destroyed) return;
    if (!this.#out.write(text)) this.#stuckSince ??= performance.now();
  }
}
