/** The sleds as a saga's step calls them: within a workflow task briefly, and not at all where one is known to be silent. */
import { activityInfo } from '@temporalio/activity';
import type {
  RegisterRequest,
  SledInventory,
  SledVmmState,
  UpdatedRuntime,
  VmmCommand,
} from '../wire/sled-protocol.ts';
import { CannotAsk, type SledAddress, type SledClient, SledError } from './sled-client.ts';

/** How long a sled that gave no answer is not asked within a workflow task, in milliseconds. */
const OPEN_MS = 10_000;
/** How long one call may take within a workflow task, in milliseconds: less than the step that makes it may. */
const AT_ONCE_CALL_MS = 1_500;

/** A sled was not asked within a workflow task, since it gave no answer a moment ago: the step goes on as an activity. */
export class SledNotAsked extends SledError {}

/** The calls of a {@link SledClient} that steps make. */
export type StepSledCalls = Pick<SledClient, 'register' | 'unregister' | 'setState' | 'readState' | 'readInventory'>;

/**
 * Calls sleds for steps. Each sled has a circuit breaker: a step within a workflow task holds one of the worker's few places for
 * such tasks, and sleds that are silent must not take them all, one time-out each, from sagas on other sleds.
 */
export class StepSleds implements StepSledCalls {
  readonly #client: StepSledCalls;
  /** By address: when a sled gave no answer, on the monotonic clock. */
  readonly #silentSinceMs = new Map<string, number>();

  constructor(client: StepSledCalls) {
    this.#client = client;
  }

  register(sled: SledAddress, vmmId: string, body: RegisterRequest, timeoutMs: number): Promise<SledVmmState> {
    return this.#call(sled, timeoutMs, (ms) => this.#client.register(sled, vmmId, body, ms));
  }

  unregister(sled: SledAddress, vmmId: string, timeoutMs: number): Promise<UpdatedRuntime> {
    return this.#call(sled, timeoutMs, (ms) => this.#client.unregister(sled, vmmId, ms));
  }

  setState(sled: SledAddress, vmmId: string, state: VmmCommand, timeoutMs: number): Promise<UpdatedRuntime> {
    return this.#call(sled, timeoutMs, (ms) => this.#client.setState(sled, vmmId, state, ms));
  }

  readState(sled: SledAddress, vmmId: string, timeoutMs: number): Promise<SledVmmState> {
    return this.#call(sled, timeoutMs, (ms) => this.#client.readState(sled, vmmId, ms));
  }

  readInventory(sled: SledAddress, timeoutMs: number): Promise<SledInventory> {
    return this.#call(sled, timeoutMs, (ms) => this.#client.readInventory(sled, ms));
  }

  /** Throws what the call throws; {@link SledNotAsked} when it is not made. */
  async #call<Answer>(
    { name, address }: SledAddress,
    timeoutMs: number,
    call: (timeoutMs: number) => Promise<Answer>,
  ): Promise<Answer> {
    const { isLocal } = activityInfo();
    if (isLocal && this.isSilent(address))
      throw new SledNotAsked('unavailable', `sled "${name}" (${address}): gave no answer a moment ago`, {
        answered: null,
      });
    try {
      const answer = await call(isLocal ? Math.min(timeoutMs, AT_ONCE_CALL_MS) : timeoutMs);
      this.#silentSinceMs.delete(address);
      return answer;
    } catch (error) {
      // One that is busy (503) has answered, and at once: only what takes its time to say nothing costs a place.
      if (error instanceof CannotAsk) throw error;
      if (error instanceof SledError && error.answered !== true) this.#silentSinceMs.set(address, performance.now());
      else this.#silentSinceMs.delete(address);
      throw error;
    }
  }

  /** Whether a sled gave no answer a moment ago. */
  isSilent(address: string): boolean {
    const sinceMs = this.#silentSinceMs.get(address);
    return sinceMs !== undefined && performance.now() - sinceMs <= OPEN_MS;
  }
}
