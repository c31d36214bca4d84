import { CancellationScope, log } from '@temporalio/workflow';

type Compensation = () => Promise<void>;

/**
 * The compensations of a saga. Each is registered *before* its step runs, since a step that failed may have taken effect;
 * they run newest first, out of reach of a cancellation, and each retries by itself until it has a definitive answer.
 */
export class Saga {
  readonly #compensations: { name: string; run: Compensation }[] = [];
  readonly #logFields: Readonly<Record<string, string>>;

  /** `logFields` stand on each of its log lines. */
  constructor(logFields: Readonly<Record<string, string>> = {}) {
    this.#logFields = logFields;
  }

  /** Registers what undoes the step that comes next. It must be harmless when the step never happened. */
  compensateWith(name: string, run: Compensation): void {
    this.#compensations.push({ name, run });
  }

  /** Runs every compensation, newest first. One that fails for good is logged and thrown after the others have run. */
  async unwind(): Promise<void> {
    const errors: unknown[] = [];
    await CancellationScope.nonCancellable(async () => {
      for (const { name, run } of this.#compensations.reverse()) {
        try {
          log.info('compensating', { ...this.#logFields, compensation: name });
          await run();
        } catch (error) {
          log.error('a compensation failed', { ...this.#logFields, compensation: name, error });
          errors.push(error);
        }
      }
    });
    if (errors.length > 0) throw errors[0];
  }
}
