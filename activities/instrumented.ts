import { activityInfo, log } from '@temporalio/activity';
import { ApplicationFailure } from '@temporalio/common';
import type { Metrics, StepOutcome } from '../platform/telemetry/metrics.ts';
import { classifyFailure } from './failures.ts';

/**
 * Wraps activities, so that what any of them throws is classed in one place, and every attempt is measured
 * (`mooring_step_seconds`) and, where it failed, logged. Every activity of the worker is wrapped: the SDK's own line about a
 * failed activity is left out for that (worker/worker.ts).
 */
export function instrumented<Activities extends Record<string, (...args: never[]) => Promise<unknown>>>(
  metrics: Metrics | undefined,
  activities: Activities,
): Activities {
  return Object.fromEntries(
    Object.entries(activities).map(([name, activity]) => [
      name,
      async (...args: never[]) => {
        const begun = performance.now();
        let outcome: StepOutcome = 'done';
        try {
          return await activity(...args);
        } catch (error) {
          const failure = classifyFailure(error);
          outcome = failure instanceof ApplicationFailure && failure.nonRetryable ? 'final' : 'retry';
          logFailure(outcome, failure, args[0]);
          throw failure;
        } finally {
          metrics?.stepSeconds.observe({ step: name, outcome }, (performance.now() - begun) / 1000);
        }
      },
    ]),
  ) as Activities;
}

/** A step that is tried for hours gets a line at its 1st, 2nd, 4th, 8th … attempt. */
function logFailure(outcome: StepOutcome, failure: unknown, input: unknown): void {
  const { attempt } = activityInfo();
  if (outcome === 'retry' && (attempt & (attempt - 1)) !== 0) return;
  const { vmmId } = (input ?? {}) as { vmmId?: unknown };
  const fields = {
    ...(typeof vmmId === 'string' ? { vmm_id: vmmId } : {}),
    reason: failure instanceof Error ? failure.message : String(failure),
  };
  if (outcome === 'final') log.warn('a step failed for good', fields);
  else log.warn('a step failed and is tried again', fields);
}
