/**
 * What changes, read from the database in one place for all who watch it through this API, and not at all while nobody does. It
 * sleeps until PostgreSQL says that there is something, and looks often for a while then, since not every change is said
 * (`note_change` in db/migrations/). Where it hears nothing, as behind a pooler, it looks by itself.
 */
import { setTimeout as pause } from 'node:timers/promises';
import type { Logger } from 'pino';
import { readEndedTokens } from '../../db/queries/read-changed-objects.ts';
import {
  type ChangeCursor,
  type MissedChanges,
  readChangeCursor,
  readChanges,
  writeChangeCursor,
} from '../../db/queries/read-changes.ts';
import type { EventStream, WrittenEvent } from './event-stream.ts';
import { writeObject } from './event-text.ts';
import { type ChangedObject, newsOf, type ObjectSource, readEverySled, readObjects } from './read-objects.ts';

/** Says when something may have changed. */
export interface ChangeListener {
  /** Whether a change will be heard. */
  readonly hears: boolean;
  /** Called when something changed, and when it hears no more. */
  onChange(listener: () => void): void;
}

/** How often it looks, in milliseconds. */
export interface FeedPace {
  /** While things change: at most so often, and for so long after the last change. */
  readonly awakeMs: number;
  readonly staysAwakeMs: number;
  /** At rest, where it hears; and where it does not. */
  readonly restMs: number;
  readonly deafMs: number;
  /** How often it looks at tokens and at what is written nowhere as it happens. */
  readonly lookMs: number;
  /** How often a stream that is quiet shows that it lives. */
  readonly beatMs: number;
}

const PACE: FeedPace = {
  awakeMs: 100,
  // Longer than the second within which no other change is said.
  staysAwakeMs: 2_500,
  restMs: 5_000,
  deafMs: 500,
  lookMs: 5_000,
  beatMs: 10_000,
};
/** It rests so many times as long as it worked: however much changes, the process has time for its calls. */
const REST_PER_WORK = 2;
/** How long until it looks again where the database failed it, in milliseconds. */
const AGAIN_MS = 1_000;

interface Joining {
  readonly stream: EventStream;
  /** The cursor that it brings; `null`: none, and `undefined`: what is none. */
  readonly after: ChangeCursor | null | undefined;
  readonly joined: () => void;
}

export class ChangeFeed {
  readonly #source: ObjectSource;
  readonly #listener: ChangeListener;
  readonly #log: Logger;
  readonly #pace: FeedPace;
  readonly #streams = new Set<EventStream>();
  readonly #joining = new Set<Joining>();
  #cursor: ChangeCursor | null = null;
  /** What was sent of each sled last. */
  readonly #sledNews = new Map<string, string>();
  #lookedAt = Number.NEGATIVE_INFINITY;
  #changedAt = Number.NEGATIVE_INFINITY;
  #wake = new AbortController();
  #running: Promise<void> | null = null;
  #isClosed = false;
  #hasFailed = false;

  constructor(
    parts: { readonly source: ObjectSource; readonly listener: ChangeListener; readonly log: Logger },
    pace: Partial<FeedPace> = {},
  ) {
    this.#source = parts.source;
    this.#listener = parts.listener;
    this.#log = parts.log;
    this.#pace = { ...PACE, ...pace };
    this.#listener.onChange(() => {
      this.#changedAt = performance.now();
      this.#wake.abort();
    });
  }

  /** How many read. */
  get size(): number {
    return this.#streams.size + this.#joining.size;
  }

  /** Whether it asks the database at all: as long as somebody reads. */
  get isReading(): boolean {
    return this.#running !== null;
  }

  /** How many read by this token; `null`: without one. */
  sizeOf(tokenId: string | null): number {
    const all = [...this.#streams, ...[...this.#joining].map(({ stream }) => stream)];
    return all.filter((stream) => stream.tokenId === tokenId).length;
  }

  /**
   * Sends a reader what came after the cursor that it brings, or a `reset`, and then all that it may see, until
   * {@link leave}. Resolves when it has been sent what there was.
   */
  join(stream: EventStream, after: string | null): Promise<void> {
    if (this.#isClosed) {
      stream.end('closing');
      return Promise.resolve();
    }
    const cursor = after === null ? null : (readChangeCursor(after) ?? undefined);
    return new Promise((joined) => {
      this.#joining.add({ stream, after: cursor, joined });
      this.#wake.abort();
      this.#running ??= this.#run();
    });
  }

  /** Sends a reader nothing more. */
  leave(stream: EventStream): void {
    this.#streams.delete(stream);
    for (const joining of this.#joining) if (joining.stream === stream) this.#joining.delete(joining);
    if (this.size === 0) this.#wake.abort();
  }

  /** Tells every reader to connect again, and ends. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const stream of [...this.#streams, ...[...this.#joining].map(({ stream }) => stream)]) {
      stream.end('closing');
      this.leave(stream);
    }
    await this.#running;
  }

  async #run(): Promise<void> {
    const beats = setInterval(() => {
      for (const stream of this.#streams) stream.beat();
    }, this.#pace.beatMs);
    // A change may have been said just before anybody read: the next ones are not.
    this.#changedAt = performance.now();
    while (this.size > 0) {
      this.#wake = new AbortController();
      const began = performance.now();
      let failed = false;
      try {
        await this.#turn();
        if (this.#hasFailed) this.#log.info('changes are read again');
        this.#hasFailed = false;
      } catch (error) {
        if (!this.#hasFailed) this.#log.warn({ err: error }, 'changes can’t be read; it is tried again');
        this.#hasFailed = failed = true;
      }
      const ended = performance.now();
      const least = failed ? AGAIN_MS : Math.max(this.#pace.awakeMs, REST_PER_WORK * (ended - began));
      // Who joins is answered at once.
      await this.#rest(least - (ended - began), () => !failed && this.#joining.size > 0);
      await this.#rest(this.#untilNext() - (performance.now() - ended), () => true);
    }
    clearInterval(beats);
    this.#running = null;
    this.#cursor = null;
    this.#sledNews.clear();
  }

  /** Waits, or until it is woken and `may` says that this counts. */
  async #rest(ms: number, may: () => boolean): Promise<void> {
    const end = performance.now() + ms;
    for (;;) {
      const left = end - performance.now();
      if (left <= 0 || this.size === 0 || (this.#wake.signal.aborted && may())) return;
      if (this.#wake.signal.aborted) {
        // Woken for what can wait: only a reader that comes wakes it now.
        await pause(Math.min(left, this.#pace.awakeMs));
        continue;
      }
      await pause(left, undefined, { signal: this.#wake.signal }).catch(() => {});
    }
  }

  /** How long after a look comes the next, if nothing wakes it. */
  #untilNext(): number {
    const { awakeMs, staysAwakeMs, restMs, deafMs } = this.#pace;
    if (performance.now() - this.#changedAt < staysAwakeMs) return awakeMs;
    return this.#listener.hears ? restMs : deafMs;
  }

  async #turn(): Promise<void> {
    const { db } = this.#source;
    const { changes, cursor, missed } = await readChanges(db, this.#cursor);
    const before = this.#cursor;
    const events = before === null || missed !== null ? [] : this.#write(await readObjects(this.#source, changes));
    // Only now: a reading that fails on the way is done again.
    this.#cursor = cursor;
    const id = writeChangeCursor(cursor);
    if (changes.length > 0) this.#changedAt = performance.now();
    for (const stream of this.#streams) {
      if (missed !== null) stream.reset(missed, id);
      else if (before !== null && cursor.snapshot !== before.snapshot) stream.send(events, id);
    }
    const isDue = performance.now() - this.#lookedAt >= this.#pace.lookMs;
    const sleds = await this.#lookAtSleds(id, isDue);
    await this.#admit(cursor, id, sleds);
    if (isDue || changes.some(({ kind }) => kind === 'token')) await this.#endTokens();
    if (isDue) this.#lookedAt = performance.now();
  }

  /** Takes in who has come: each is brought to where all others are, and shown `sleds`. */
  async #admit(cursor: ChangeCursor, id: string, sleds: readonly ChangedObject[]): Promise<void> {
    for (const joining of [...this.#joining]) {
      const { stream, after, joined } = joining;
      let missed: MissedChanges | 'begin' | null = after === null ? 'begin' : 'other_history';
      if (after != null) {
        const past = await readChanges(this.#source.db, after, cursor);
        missed = past.missed;
        if (missed === null) {
          const events = this.#write([...(await readObjects(this.#source, past.changes)), ...sleds]);
          if (!this.#joining.has(joining)) continue;
          stream.send(events, id);
        }
      }
      // It may have gone meanwhile.
      if (!this.#joining.delete(joining)) continue;
      if (missed !== null) stream.reset(missed, id);
      this.#streams.add(stream);
      joined();
    }
  }

  #write(objects: readonly ChangedObject[]): WrittenEvent[] {
    for (const { kind, id, object } of objects) if (kind === 'sled') this.#sledNews.set(id, newsOf(object));
    return objects.map((changed) => ({ changed, text: writeObject(changed) }));
  }

  async #endTokens(): Promise<void> {
    const ids = new Set([...this.#streams].flatMap(({ tokenId }) => (tokenId === null ? [] : [tokenId])));
    if (ids.size === 0) return;
    const ended = await readEndedTokens(this.#source.db, [...ids]);
    for (const stream of this.#streams) {
      const why = stream.tokenId === null ? undefined : ended.get(stream.tokenId);
      if (why === undefined) continue;
      stream.end(why === 'revoked' ? 'token_revoked' : 'token_expired');
      this.leave(stream);
    }
  }

  /**
   * Sends what is news of sleds and was noted nowhere as it happened. Returns all of them for who comes: what happened while it
   * was away is known of none.
   */
  async #lookAtSleds(id: string, isDue: boolean): Promise<readonly ChangedObject[]> {
    const readers = [...this.#streams].filter(({ filter }) => filter.kinds.has('sled'));
    const isAsked = [...this.#joining].some(({ stream }) => stream.filter.kinds.has('sled'));
    if (!isAsked && (!isDue || readers.length === 0)) return [];
    const sleds = await readEverySled(this.#source);
    const news = sleds.filter((sled) => newsOf(sled.object) !== this.#sledNews.get(sled.id));
    const events = this.#write(news);
    for (const stream of readers) stream.send(events, id);
    return sleds;
  }
}
