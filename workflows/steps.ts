/**
 * The steps of the sagas, each declared once: how long it may take within the workflow task, how it goes on as an activity,
 * and when it is given up. What each one is, in words, is in model/saga-steps.ts.
 *
 * One rule for all of them. A step is tried once within the workflow task (a local activity): what is settled there costs no
 * task of its own, neither in a queue nor in the history. What is not settled there goes on as an ordinary activity, which the
 * Web UI shows with its attempts and its error for as long as PostgreSQL or the sled is away.
 *
 * A worker that dies within the task takes its results along: the task is done again from its beginning, with the same ids, and
 * perhaps beside a late step of the first one. So each step can run twice, and beside every later step of its saga; what may not
 * both happen is decided by the database (`begin-unwind`, `apply-report`).
 */
import {
  type ActivityOptions,
  isCancellation,
  proxyActivities,
  proxyLocalActivities,
  type RetryPolicy,
} from '@temporalio/workflow';
import type { SagaActivities } from '../activities/sagas.ts';
import { isFinalFailure, isTimeout, stepFailure } from './failures.ts';

/** How long the sagas go on trying to register a VMM before they unwind, in milliseconds (section 5 of docs/design.md). */
export const DEFAULT_REGISTER_TIMEOUT_MS = 15_000;

/** How long any step may take within the workflow task, which waits for it and shows nothing meanwhile. */
const AT_ONCE = '2s';

const pauses = (maximumInterval: '1s' | '2s' | '5s'): RetryPolicy => ({
  initialInterval: '100ms',
  backoffCoefficient: 2,
  maximumInterval,
});

/** One transaction: retried until PostgreSQL is back, since nothing else can decide for it. */
const TRANSACTION: ActivityOptions = { startToCloseTimeout: '10s', retry: pauses('5s') };

/** A command whose outcome must be known: retried until the sled's answer is definitive, however long it is silent. */
const UNTIL_DEFINITIVE: ActivityOptions = { startToCloseTimeout: '10s', retry: pauses('2s') };

/** A command that may be given up: what it leaves is mended later. */
const BRIEFLY: ActivityOptions = {
  startToCloseTimeout: '2s',
  scheduleToCloseTimeout: '3s',
  retry: pauses('1s'),
};

/** A command to a sled that has just given no answer, while somebody waits: the watcher asks it again in any case. */
const ONCE: ActivityOptions = { scheduleToCloseTimeout: '2s', retry: { maximumAttempts: 1 } };

/** A command that is retried within a bound: nothing runs yet, and another attempt of the user's may do better. */
function within(timeoutMs: number): ActivityOptions {
  return {
    startToCloseTimeout: Math.min(5_000, timeoutMs),
    scheduleToCloseTimeout: timeoutMs,
    retry: pauses('2s'),
  };
}

export const claimStart = step('claimStart', TRANSACTION);
export const readOtherSleds = step('readOtherSleds', BRIEFLY);
export const claimMigration = step('claimMigration', TRANSACTION);
export const signalUpdate = step('signalUpdate', TRANSACTION);
export const registerVmm = (timeoutMs: number) =>
  step('registerVmm', within(timeoutMs), ({ sledName }) => `sled "${sledName}"`);
export const runVmm = step('runVmm', UNTIL_DEFINITIVE);
export const migrateIn = step('migrateIn', UNTIL_DEFINITIVE);

export const readMigrateInCommand = step('readMigrateInCommand', TRANSACTION);
export const beginUnwind = step('beginUnwind', TRANSACTION);
export const unregisterVmm = step('unregisterVmm', UNTIL_DEFINITIVE);
export const unregisterVmmBriefly = step('unregisterVmm', BRIEFLY);
export const unregisterVmmOnce = step('unregisterVmm', ONCE);
export const finishUnwind = step('finishUnwind', TRANSACTION);

export const updateInstance = step('updateInstance', TRANSACTION);
export const deliverStop = step('deliverStop', UNTIL_DEFINITIVE);
export const unregisterLeftover = step('unregisterLeftover', UNTIL_DEFINITIVE);

/**
 * Declares a step, with how it goes on as an activity. A failure that trying again can't mend ends it at once, as does a
 * cancellation; `silent` names, for a step with a bound, who gave no answer within it.
 */
function step<Name extends keyof SagaActivities>(
  name: Name,
  activity: ActivityOptions,
  silent?: (request: Parameters<SagaActivities[Name]>[0]) => string,
): SagaActivities[Name] {
  const now = proxyLocalActivities<Steps>({ startToCloseTimeout: AT_ONCE, retry: { maximumAttempts: 1 } })[
    name as string
  ] as Step;
  const retried = proxyActivities<Steps>(activity)[name as string] as Step;
  // No `async`: the SDK takes a stack trace of each promise that a workflow makes.
  const run = (request: Parameters<SagaActivities[Name]>[0]): Promise<unknown> =>
    now(request).catch((error: unknown) => {
      if (isCancellation(error) || isFinalFailure(error)) throw error;
      return retried(request).catch((last: unknown) => {
        // Temporal's own time-out does not say whose it was.
        if (silent === undefined || !isTimeout(last)) throw last;
        throw stepFailure('Timeout', `${silent(request)} gave no answer in time`, last);
      });
    });
  return run as SagaActivities[Name];
}
type Step = (request: unknown) => Promise<unknown>;
type Steps = Record<string, Step>;
