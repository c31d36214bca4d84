import { isCancellation, patched, proxyActivities, proxyLocalActivities } from '@temporalio/workflow';
import type { ControlActivities } from '../activities/activities.ts';
import { isFinalFailure } from './failures.ts';

/** How long the sagas go on trying to register a VMM before they unwind, in milliseconds (section 5 of docs/design.md). */
export const DEFAULT_REGISTER_TIMEOUT_MS = 15_000;

/** One transaction each: retried until PostgreSQL is back, since nothing else can decide for it. */
export const database = proxyActivities<ControlActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});

/**
 * Tried once within the workflow task, and not for long, since the task waits for it and shows nothing meanwhile: a step
 * that is done at once costs no task of its own, neither in the queue nor in the history.
 */
const atOnce = (startToCloseTimeout: '3s' | '2s') =>
  proxyLocalActivities<ControlActivities>({ startToCloseTimeout, retry: { maximumAttempts: 1 } });

/**
 * Does a step at once, within the workflow task. What that does not settle goes on as a step of its own, which the Web UI
 * shows with its attempts and its error for as long as PostgreSQL or the sled is away.
 */
async function atOnceOrAsStep<Result>(now: () => Promise<Result>, asStep: () => Promise<Result>): Promise<Result> {
  try {
    return await now();
  } catch (error) {
    if (isCancellation(error) || isFinalFailure(error)) throw error;
    return asStep();
  }
}

/** The steps of a start up to the point of no return. Made first: how they run is decided for a whole run of the saga. */
export function startSteps(
  registerTimeoutMs = DEFAULT_REGISTER_TIMEOUT_MS,
): Pick<ControlActivities, 'claimStart' | 'registerVmm'> {
  const registersAtOnce = patched('register-at-once');
  // A run that registers at once needs no mark of the change before.
  const claimsAtOnce = registersAtOnce || patched('claim-at-once');
  const { registerVmm } = registering(registerTimeoutMs);
  return {
    claimStart: (request) =>
      claimsAtOnce
        ? atOnceOrAsStep(
            () => atOnce('3s').claimStart(request),
            () => database.claimStart({ ...request, isRetry: true }),
          )
        : database.claimStart(request),
    registerVmm: (claim) =>
      registersAtOnce
        ? atOnceOrAsStep(
            () => atOnce('2s').registerVmm(claim),
            () => registerVmm({ ...claim, isRetry: true }),
          )
        : registerVmm(claim),
  };
}

/** A command whose outcome must be known: retried until the sled's answer is definitive, however long it is silent. */
export const untilDefinitive = proxyActivities<ControlActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '2s' },
});

/** A command that may be given up: what it leaves is mended later. */
export const briefly = proxyActivities<ControlActivities>({
  startToCloseTimeout: '2s',
  scheduleToCloseTimeout: '3s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '1s' },
});

/** Registering a VMM: retried within a bound, since nothing runs yet and another start may do better. */
export function registering(timeoutMs: number) {
  return proxyActivities<ControlActivities>({
    startToCloseTimeout: Math.min(5_000, timeoutMs),
    scheduleToCloseTimeout: timeoutMs,
    retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '2s' },
  });
}
