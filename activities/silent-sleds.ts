import { type SledAddress, SledError } from './sled-client.ts';

/** How long a sled that gave no answer is not asked within a workflow task, in milliseconds. */
const SPARED_MS = 10_000;

/**
 * Which sleds gave no answer a moment ago. A step within a workflow task holds one of the worker's few places for such
 * tasks: sleds that are silent must not take them all, one time-out each, from starts on other sleds.
 */
export class SilentSleds {
  readonly #sinceMs = new Map<string, number>();

  /** Throws a {@link SledError} of kind `unavailable`, without a call, when the sled gave no answer a moment ago. */
  refuse({ name, address }: SledAddress): void {
    const since = this.#sinceMs.get(address);
    if (since === undefined || performance.now() - since > SPARED_MS) return;
    throw new SledError('unavailable', `sled "${name}" (${address}): gave no answer a moment ago`);
  }

  /** Makes a call to a sled, and remembers whether it was answered. Throws what the call throws. */
  async heed<Answer>({ address }: SledAddress, call: () => Promise<Answer>): Promise<Answer> {
    try {
      const answer = await call();
      this.#sinceMs.delete(address);
      return answer;
    } catch (error) {
      if (error instanceof SledError && error.kind === 'unavailable') this.#sinceMs.set(address, performance.now());
      else this.#sinceMs.delete(address);
      throw error;
    }
  }
}
