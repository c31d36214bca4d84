import { rootMessage } from '../host/root-message.ts';
import { within } from '../host/with-limit.ts';

/** How long a trial is good, in milliseconds: one that succeeded, and one that failed. */
const KEPT = { goodMs: 10_000, badMs: 2_000 };

/**
 * Whether a service that answers takes writes too: one whose disk is full reads on as if nothing were wrong. It is tried by
 * writing, at most once in some seconds however often one asks.
 */
export class WriteProbe {
  readonly #service: string;
  readonly #write: () => Promise<void>;
  readonly #limitMs: number;
  readonly #kept: typeof KEPT;
  #last: { readonly problem: Promise<string | null>; goodUntil: number } | null = null;

  /** `service`: its name for people; `write` throws when it takes no writes; it may take `limitMs` milliseconds. `kept`: how long a trial is good. */
  constructor(service: string, write: () => Promise<void>, limitMs: number, kept = KEPT) {
    this.#service = service;
    this.#write = write;
    this.#limitMs = limitMs;
    this.#kept = kept;
  }

  /** What keeps the service from taking writes, in a sentence; `null` when it takes them. Never throws. */
  problem(): Promise<string | null> {
    if (this.#last !== null && performance.now() < this.#last.goodUntil) return this.#last.problem;
    const problem = this.#try();
    const last = { problem, goodUntil: Number.POSITIVE_INFINITY };
    this.#last = last;
    void problem.then((found) => {
      last.goodUntil = performance.now() + (found === null ? this.#kept.goodMs : this.#kept.badMs);
    });
    return problem;
  }

  async #try(): Promise<string | null> {
    try {
      await within(this.#limitMs, this.#write(), () => {
        throw new Error(`no answer in ${this.#limitMs} ms`);
      });
      return null;
    } catch (error) {
      return `${this.#service} takes no writes: is its disk full, or is it read-only? It says: ${rootMessage(error)}`;
    }
  }
}
