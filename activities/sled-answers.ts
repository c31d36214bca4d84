/** Which sleds answer, as the calls of this process show: remembered in their rows, beside the calls that show it. */
import type { Logger } from 'pino';
import type { Database } from '../db/connect.ts';
import { recordSledAnswer, recordSledSilence } from '../db/transactions/record-sled-answer.ts';
import type { SledAddress } from './sled-client.ts';

/** How often the silence of one sled is written at most, in milliseconds: another process may have heard it meanwhile. */
const AGAIN_MS = 10_000;

/**
 * Writes changes alone, and nobody waits for them: a call to a sled that answers, as it did before, costs nothing. What the
 * watcher finds in its passes is the same, and makes up for what is lost here.
 */
export class SledAnswers {
  readonly #db: Database;
  readonly #log: Pick<Logger, 'warn'>;
  /** By address: when this process wrote last that the sled is silent, on the monotonic clock. */
  readonly #silent = new Map<string, number>();
  /** Writes, one after the other: the last word on a sled stays the last. */
  #writes: Promise<void> = Promise.resolve();

  constructor(db: Database, log: Pick<Logger, 'warn'>) {
    this.#db = db;
    this.#log = log;
  }

  /** A call was answered (`true`) or not; `null`: nobody can say. */
  observe({ name, address }: SledAddress, answered: boolean | null): void {
    const writtenAtMs = this.#silent.get(address);
    if (answered === true && writtenAtMs !== undefined) {
      this.#silent.delete(address);
      this.#write(name, () => recordSledAnswer(this.#db, { address }, undefined));
    }
    if (answered === false && (writtenAtMs === undefined || performance.now() - writtenAtMs > AGAIN_MS)) {
      this.#silent.set(address, performance.now());
      this.#write(name, () => recordSledSilence(this.#db, { address }));
    }
  }

  /** Resolves when all is written that was observed. */
  async settled(): Promise<void> {
    await this.#writes;
  }

  #write(sled: string, write: () => Promise<void>): void {
    this.#writes = this.#writes
      .then(write)
      .catch((error: unknown) => this.#log.warn({ err: error, sled }, 'whether a sled answers could not be written'));
  }
}
