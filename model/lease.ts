/**
 * Whose word counts when a sled falls silent: the arithmetic of leases (section 10 of docs/design.md), without I/O.
 *
 *   sled agent       sent ├──────────── lease ───────────┤ powers off its guests
 *   its watchdog          │                              ├ grace ┤ kills the agent and what it left
 *   control plane      received ├──────────── lease ───────────┤──── margin ────┤ its VMMs are Failed
 *
 * What is received was sent before, so the control plane's count begins later and ends later. The margin covers what is
 * left: the watchdog's grace, the time that a kill takes, clocks that run at different rates, and a jump of the database's
 * clock that is too small to be seen as a gap.
 */

/** The lease of a sled agent that names no other, in milliseconds. */
export const DEFAULT_LEASE_MS = 30_000;
/** A sled agent renews so often in a lease. */
export const RENEWALS_PER_LEASE = 3;
/** The longest lease, in milliseconds: for so long, and half as long again, nobody brings a dead sled's guests up elsewhere. */
export const MAX_LEASE_MS = 3_600_000;
/** How often the control plane writes down that it can take renewals where nothing else is asked for, in milliseconds. */
export const DEFAULT_BEAT_MS = 1_000;
/** A silence of the control plane that is longer than so many beats is written down as a gap. */
const BEATS_IN_GAP = 2.5;

/** How long after the end of a lease the watchdog acts if the agent has not, in milliseconds. */
export function watchdogGraceMs(leaseMs: number): number {
  return leaseMs / 10;
}

/** How much longer than the lease the control plane waits, in milliseconds. */
export function marginMs(leaseMs: number): number {
  return leaseMs / 2;
}

/**
 * The longest silence of the control plane that counts for nothing, in milliseconds: short enough that an agent whose
 * renewal falls into it still succeeds in time, and that a jump of the clock which looks like it is covered by the margin.
 */
export function tolerableGapMs(leaseMs: number): number {
  return leaseMs / 6;
}

/** The shortest silence that is written down, in milliseconds, by a control plane that beats every `beatMs`. */
export function shortestGapMs(beatMs: number): number {
  return beatMs * BEATS_IN_GAP;
}

/** The shortest lease that a control plane which beats every `beatMs` can judge, in milliseconds. */
export function shortestLeaseMs(beatMs: number): number {
  return Math.max(1, Math.ceil(6 * shortestGapMs(beatMs)));
}

/** Placement passes over a sled that has missed two renewals: after this share of its lease. */
export const LATE_AFTER_LEASES = 2 / 3;

/** A time during which no API wrote down that it could take renewals; it is known when it is over. Milliseconds. */
export interface ServiceGap {
  readonly beganMs: number;
  readonly endedMs: number;
}

/** All that a verdict depends on, read in one transaction; times in milliseconds on the database's clock. */
export interface LeaseFacts {
  readonly nowMs: number;
  readonly renewedMs: number;
  readonly leaseMs: number;
  /** When the control plane last wrote down that it could take renewals. */
  readonly lastBeatMs: number;
  /** The gaps that ended after the renewal, at least. */
  readonly gaps: readonly ServiceGap[];
}

export const LEASE_STANDINGS = ['held', 'late', 'lapsed', 'unattended', 'dead'] as const;
/**
 * `held`; `late`: renewals were missed; `lapsed`: the lease is over, the margin isn't; `unattended`: the control plane
 * itself was away for a part of the time, or is, so the wait begins anew; `dead`: the sled's guests are off for certain.
 */
export type LeaseStanding = (typeof LEASE_STANDINGS)[number];

/**
 * How a lease stands. `dead` only when lease and margin have passed, since the last renewal and since the last time at
 * which the control plane could not have taken one.
 */
export function leaseStanding(facts: LeaseFacts): LeaseStanding {
  const { nowMs, renewedMs, leaseMs, lastBeatMs } = facts;
  const tolerable = tolerableGapMs(leaseMs);
  const age = nowMs - renewedMs;
  if (age < leaseMs * LATE_AFTER_LEASES) return 'held';
  if (age < leaseMs) return 'late';
  if (nowMs - lastBeatMs > tolerable || lastBeatMs - nowMs > tolerable) return 'unattended';
  const deadAfter = leaseMs + marginMs(leaseMs);
  const away = facts.gaps.filter(({ beganMs, endedMs }) => endedMs - beganMs > tolerable || endedMs < beganMs);
  const attendedSince = Math.max(renewedMs, ...away.map(({ endedMs }) => endedMs));
  if (nowMs - attendedSince >= deadAfter) return 'dead';
  return age >= deadAfter ? 'unattended' : 'lapsed';
}
