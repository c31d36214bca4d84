/**
 * Hears of the outcomes of operations as they are committed, and that something changed, over one connection of its own that
 * listens (`announce_operation_outcome` and `note_change` in db/migrations/ speak). What it hears is true; that it hears is never certain: PgBouncer in
 * transaction mode takes the LISTEN and delivers nothing, and no more comes over a connection whose other side is gone. So it
 * proves it time and again, by a word of its own that goes to PostgreSQL the ordinary way.
 */
import { randomUUID } from 'node:crypto';
import { Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { sql } from 'drizzle-orm';
import type pg from 'pg';
import type { Logger } from 'pino';
import { withLimit } from '../platform/host/with-limit.ts';
import { type Database, refusesSettings, singleConnection } from './connect.ts';

/** Where the outcomes of operations can be heard. */
export interface OutcomeListener {
  /** Whether it heard its last proof: then an outcome will be heard, unless the connection breaks in this moment. */
  readonly hears: boolean;
  /**
   * Whether an operation succeeded, once that is heard or if it was heard lately; it may never be. Rejects with the signal's
   * reason.
   */
  heard(operationId: string, signal: AbortSignal): Promise<boolean>;
  /** Resolves after `ms` milliseconds, or as soon as it hears no more. Rejects when `signal` is aborted. */
  whileItHears(ms: number, signal: AbortSignal): Promise<void>;
}

export interface OperationOutcomesOptions {
  /** How often it proves that it hears, in milliseconds; default 5000. */
  readonly proveEveryMs?: number | undefined;
}

/** The channel of the trigger on `operation`, and that of `note_change`. */
const CHANNEL = 'mooring_operation_ended';
const CHANGE_CHANNEL = 'mooring_changed';
const DEFAULT_PROVE_EVERY_MS = 5_000;
/** How long a proof, or the first words on a connection, may take, in milliseconds. */
const PROOF_MS = 2_000;
/** How long until a proof is tried again that could not be given, in milliseconds. */
const PROVE_AGAIN_MS = 1_000;
/** The first and the longest pause until it connects again, in milliseconds. */
const PAUSES_MS = { first: 200, longest: 5_000 };
/** The same where it connects and hears nothing: a pooler stays what it is, until somebody changes it. */
const DEAF_PAUSES_MS = { first: 5_000, longest: 60_000 };

/** How long until it connects again, in milliseconds, after `failures` others in a row: twice as long each time. Pure. */
export function listenAgainMs(failures: number, isDeaf: boolean): number {
  const { first, longest } = isDeaf ? DEAF_PAUSES_MS : PAUSES_MS;
  return Math.min(longest, first * 2 ** failures);
}

/** How many outcomes it keeps in mind: a saga may be over before its caller knows the id of its run. */
const KEPT = 10_000;

/** Listens for one process. Deaf until {@link start}. */
export class OperationOutcomes implements OutcomeListener {
  readonly #url: string;
  readonly #db: Database;
  readonly #log: Logger;
  readonly #applicationName: string;
  readonly #proveEveryMs: number;
  /** Nobody else speaks here. */
  readonly #proofChannel = `mooring_proof_${randomUUID().replaceAll('-', '')}`;
  readonly #known = new Map<string, boolean>();
  readonly #waiting = new Map<string, Set<(succeeded: boolean) => void>>();
  readonly #closing = new AbortController();
  readonly #peer = { takesSettings: true, keepsStatements: false };
  readonly #changeListeners: (() => void)[] = [];
  #provenBy: ((word: string) => void) | null = null;
  #hears = false;
  /** Aborted when it hears no more. */
  #hearing = new AbortController();
  /** Whether the log's last word was that it is deaf. */
  #saidDeaf = false;
  #running: Promise<void> = Promise.resolve();

  /** `db` reaches the same database as `url`, over other connections. */
  constructor(
    parts: { readonly url: string; readonly db: Database; readonly log: Logger; readonly applicationName: string },
    { proveEveryMs = DEFAULT_PROVE_EVERY_MS }: OperationOutcomesOptions = {},
  ) {
    this.#url = parts.url;
    this.#db = parts.db;
    this.#log = parts.log;
    this.#applicationName = parts.applicationName;
    this.#proveEveryMs = proveEveryMs;
  }

  get hears(): boolean {
    return this.#hears;
  }

  /** Has `listener` called when something may have changed (docs/events.md), and when that is heard no more. */
  onChange(listener: () => void): void {
    this.#changeListeners.push(listener);
  }

  /** Begins to listen, and goes on whatever becomes of the connection. */
  start(): void {
    this.#running = this.#run();
  }

  /** Ends the connection; what is waited for is heard no more. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#running;
  }

  heard(operationId: string, signal: AbortSignal): Promise<boolean> {
    const known = this.#known.get(operationId);
    if (known !== undefined) return Promise.resolve(known);
    return new Promise((resolve, reject) => {
      const waiting = this.#waiting.get(operationId) ?? new Set();
      this.#waiting.set(operationId, waiting.add(resolve));
      const leave = () => {
        waiting.delete(resolve);
        if (waiting.size === 0) this.#waiting.delete(operationId);
        reject(signal.reason);
      };
      if (signal.aborted) leave();
      else signal.addEventListener('abort', leave, { once: true });
    });
  }

  async whileItHears(ms: number, signal: AbortSignal): Promise<void> {
    if (!this.#hears) return;
    const over = new AbortController();
    const end = () => over.abort();
    const ends = [signal, this.#hearing.signal];
    for (const each of ends) each.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    await pause(ms, undefined, { signal: over.signal }).catch(() => {});
    for (const each of ends) each.removeEventListener('abort', end);
    signal.throwIfAborted();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    let failures = 0;
    while (!signal.aborted) {
      let isDeaf = false;
      try {
        await this.#listen(() => {
          failures = 0;
        });
      } catch (error) {
        isDeaf = error instanceof HearsNothing;
        if (refusesSettings(error)) this.#peer.takesSettings = false;
        else if (!signal.aborted) this.#sayDeaf(error);
      }
      await pause(listenAgainMs(failures, isDeaf), undefined, { signal }).catch(() => {});
      failures += 1;
    }
  }

  /** Listens over one connection until it can't be relied on any more; throws why. `onProof` is called with each proof. */
  async #listen(onProof: () => void): Promise<never> {
    const socket = new Socket();
    const client = singleConnection(this.#url, this.#applicationName, socket, this.#peer);
    const ended = new AbortController();
    const over = ended.signal;
    const close = () => ended.abort(this.#closing.signal.reason);
    this.#closing.signal.addEventListener('abort', close, { once: true });
    client.once('end', () => ended.abort(new Error('the connection has ended')));
    client.on('notification', (message) => this.#hear(message));
    try {
      await unless(over, client.connect());
      await withLimit(PROOF_MS, over, (signal) =>
        unless(signal, client.query(`LISTEN ${CHANNEL}; LISTEN ${CHANGE_CHANNEL}; LISTEN ${this.#proofChannel}`)),
      );
      let heardBefore = false;
      for (;;) {
        const proof = await this.#prove(over);
        if (proof === 'deaf') throw heardBefore ? new Error('the connection is cut') : new HearsNothing();
        this.#become(proof === 'heard');
        if (proof === 'heard') onProof();
        heardBefore ||= proof === 'heard';
        await pause(proof === 'heard' ? this.#proveEveryMs : PROVE_AGAIN_MS, undefined, { signal: over });
      }
    } finally {
      this.#closing.signal.removeEventListener('abort', close);
      this.#become(false);
      await endConnection(client, socket);
    }
  }

  /** Says a word the ordinary way, and waits until it is heard. `unsaid`: it could not be said, so nothing is known. */
  async #prove(over: AbortSignal): Promise<'heard' | 'deaf' | 'unsaid'> {
    const word = randomUUID();
    const heard = new Promise<'heard'>((resolve) => {
      this.#provenBy = (said) => {
        if (said === word) resolve('heard');
      };
    });
    let wasSaid = false;
    try {
      const said = this.#db.execute(sql`SELECT pg_notify(${this.#proofChannel}, ${word})`);
      await withLimit(PROOF_MS, over, (signal) => unless(signal, said));
      wasSaid = true;
      return await withLimit(PROOF_MS, over, (signal) => unless(signal, heard));
    } catch {
      over.throwIfAborted();
      return wasSaid ? 'deaf' : 'unsaid';
    } finally {
      this.#provenBy = null;
    }
  }

  #hear({ channel, payload = '' }: pg.Notification): void {
    if (channel === this.#proofChannel) {
      this.#provenBy?.(payload);
      return;
    }
    if (channel === CHANGE_CHANNEL) {
      for (const listener of this.#changeListeners) listener();
      return;
    }
    const [operationId, succeeded] = payload.split(' ');
    if (operationId === undefined || (succeeded !== 'true' && succeeded !== 'false')) return;
    this.#known.set(operationId, succeeded === 'true');
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= KEPT) break;
      this.#known.delete(oldest);
    }
    const waiting = this.#waiting.get(operationId);
    this.#waiting.delete(operationId);
    for (const resolve of waiting ?? []) resolve(succeeded === 'true');
  }

  #become(hears: boolean): void {
    if (hears && this.#saidDeaf) this.#log.info('outcomes of operations are heard from PostgreSQL again');
    if (hears) this.#saidDeaf = false;
    if (hears && !this.#hears) this.#hearing = new AbortController();
    const endsNow = !hears && this.#hears;
    if (endsNow) this.#hearing.abort(new HearsNothing());
    this.#hears = hears;
    if (endsNow) for (const listener of this.#changeListeners) listener();
  }

  #sayDeaf(error: unknown): void {
    if (!this.#saidDeaf)
      this.#log.warn(
        { err: error },
        'outcomes of operations are not heard from PostgreSQL: Temporal is asked for them',
      );
    this.#saidDeaf = true;
  }
}

/** It listens over a new connection, and what it says itself does not arrive. */
class HearsNothing extends Error {
  override readonly name = 'HearsNothing';

  constructor() {
    super('it hears nothing: is there a pooler in transaction mode?');
  }
}

/** What `work` comes to; throws the signal's reason as soon as it is aborted. The work goes on. */
async function unless<Result>(signal: AbortSignal, work: Promise<Result>): Promise<Result> {
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

/** How long a connection's end may take, in milliseconds: where the other side is gone, nobody confirms it. */
const END_MS = 1_000;

async function endConnection(client: pg.Client, socket: Socket): Promise<void> {
  const never = new AbortController().signal;
  await withLimit(END_MS, never, (signal) => unless(signal, client.end())).catch(() => {});
  socket.destroy();
}
