/** How the workflows run their steps: each step's time-outs and retries, and why they are so. */
import { isCancellation, proxyActivities, proxyLocalActivities } from '@temporalio/workflow';
import type { SagaActivities } from '../activities/sagas.ts';
import { isFinalFailure, isTimeout, stepFailure } from './failures.ts';

/** How long the sagas go on trying to register a VMM before they unwind, in milliseconds (section 5 of docs/design.md). */
const DEFAULT_REGISTER_TIMEOUT_MS = 15_000;

/** One transaction each: retried until PostgreSQL is back, since nothing else can decide for it. */
export const database = proxyActivities<SagaActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});

/** A command whose outcome must be known: retried until the sled's answer is definitive, however long it is silent. */
export const untilDefinitive = proxyActivities<SagaActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '2s' },
});

/** A command that may be given up: what it leaves is mended later. */
export const briefly = proxyActivities<SagaActivities>({
  startToCloseTimeout: '2s',
  scheduleToCloseTimeout: '3s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '1s' },
});

/** The steps of a start up to the point of no return. `registerTimeoutMs` is how long registering may be tried again. */
export function startSteps(registerTimeoutMs = DEFAULT_REGISTER_TIMEOUT_MS) {
  const { registerVmm } = migrateSteps(registerTimeoutMs);
  return {
    claimStart: (request: ClaimStart) =>
      atOnceOrAsStep(
        () => atOnce('3s').claimStart(request),
        () => database.claimStart(request),
      ),
    registerVmm: (claim: RegisterVmm) =>
      atOnceOrAsStep(
        () => atOnce('2s').registerVmm(claim),
        () => registerVmm({ ...claim, isRetry: true }),
      ),
  };
}
type ClaimStart = Parameters<SagaActivities['claimStart']>[0];
type RegisterVmm = Parameters<SagaActivities['registerVmm']>[0];

/** Registering a VMM as a step: retried within a bound, since nothing runs yet and another attempt may do better. */
export function migrateSteps(registerTimeoutMs = DEFAULT_REGISTER_TIMEOUT_MS) {
  const bounded = proxyActivities<SagaActivities>({
    startToCloseTimeout: Math.min(5_000, registerTimeoutMs),
    scheduleToCloseTimeout: registerTimeoutMs,
    retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '2s' },
  });
  return {
    async registerVmm(claim: RegisterVmm): Promise<void> {
      try {
        await bounded.registerVmm(claim);
      } catch (error) {
        if (!isTimeout(error)) throw error;
        // Temporal's own time-out does not say whose it was.
        throw stepFailure('Timeout', `sled "${claim.sledName}" gave no answer in time`, error);
      }
    },
  };
}

/**
 * Tried once within the workflow task, and not for long, since the task waits for it and shows nothing meanwhile: a step
 * that is done at once costs no task of its own, neither in the queue nor in the history.
 */
function atOnce(startToCloseTimeout: '3s' | '2s') {
  return proxyLocalActivities<SagaActivities>({ startToCloseTimeout, retry: { maximumAttempts: 1 } });
}

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
