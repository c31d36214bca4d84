import { type SledAddress, SledError } from './sled-client.ts';

/** How long a sled that gave no answer is not asked within a workflow task, in milliseconds. */
const OPEN_MS = 10_000;

/**
 * A circuit breaker for each sled. A step within a workflow task holds one of the worker's few places for such tasks: sleds
 * that are silent must not take them all, one time-out each, from starts on other sleds.
 */
export class SledCircuitBreaker {
  /** By address: when a sled gave no answer, on the monotonic clock. */
  readonly #openedMs = new Map<string, number>();

  /** Throws a {@link SledError} of kind `unavailable`, without a call, when the sled gave no answer a moment ago. */
  check({ name, address }: SledAddress): void {
    const openedMs = this.#openedMs.get(address);
    if (openedMs === undefined || performance.now() - openedMs > OPEN_MS) return;
    throw new SledError('unavailable', `sled "${name}" (${address}): gave no answer a moment ago`);
  }

  /** Makes a call to a sled, and remembers whether it was answered. Throws what the call throws. */
  async run<Answer>({ address }: SledAddress, call: () => Promise<Answer>): Promise<Answer> {
    try {
      const answer = await call();
      this.#openedMs.delete(address);
      return answer;
    } catch (error) {
      if (error instanceof SledError && error.kind === 'unavailable') this.#openedMs.set(address, performance.now());
      else this.#openedMs.delete(address);
      throw error;
    }
  }
}
