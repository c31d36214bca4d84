import { isCancellation, patched, proxyActivities, proxyLocalActivities } from '@temporalio/workflow';
import type { ControlActivities } from '../activities/activities.ts';
import { isFinalFailure } from './failures.ts';

/** How long the sagas go on trying to register a VMM before they unwind, in milliseconds (section 5 of the design). */
export const DEFAULT_REGISTER_TIMEOUT_MS = 15_000;

/** One transaction each: retried until PostgreSQL is back, since nothing else can decide for it. */
export const database = proxyActivities<ControlActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});

/** One transaction within the workflow task: once, and not for long, since the task waits for it and shows nothing meanwhile. */
const atOnce = proxyLocalActivities<ControlActivities>({ startToCloseTimeout: '3s', retry: { maximumAttempts: 1 } });

/**
 * Claims a start's VMM: at once, within the workflow task that begins the saga; what that does not settle goes on as a step
 * of its own, which the Web UI shows with its attempts and its error for as long as PostgreSQL is away.
 */
export async function claimStart(
  request: Parameters<ControlActivities['claimStart']>[0],
): ReturnType<ControlActivities['claimStart']> {
  if (!patched('claim-at-once')) return database.claimStart(request);
  try {
    return await atOnce.claimStart(request);
  } catch (error) {
    if (isCancellation(error) || isFinalFailure(error)) throw error;
    return await database.claimStart({ ...request, isRetry: true });
  }
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
