import { proxyActivities } from '@temporalio/workflow';
import type { ControlActivities } from '../activities/activities.ts';

/** How long the sagas go on trying to register a VMM before they unwind, in milliseconds (section 5 of the design). */
export const DEFAULT_REGISTER_TIMEOUT_MS = 15_000;

/** One transaction each: retried until PostgreSQL is back, since nothing else can decide for it. */
export const database = proxyActivities<ControlActivities>({
  startToCloseTimeout: '10s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '5s' },
});

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
