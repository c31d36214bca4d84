/** Which instances are started again by themselves (section 5 of docs/design.md): a decision without I/O. */
import type { AutoRestartPolicy, ExternalState, IntendedState, StartReason } from './states.ts';

/** The policy of an instance that names none. Source: Omicron's default, `best_effort`. */
export const DEFAULT_AUTO_RESTART_POLICY: AutoRestartPolicy = 'best_effort';

/** What the decision needs to know of an instance. */
export interface AutoRestartFacts {
  readonly externalState: ExternalState;
  readonly intendedState: IntendedState;
  /** `null` is unset. */
  readonly policy: AutoRestartPolicy | null;
  readonly lastStartReason: StartReason | null;
  readonly timeLastAutoRestarted: Date | null;
  readonly cooldownSeconds: number;
  /** The starts of it that failed since one succeeded; `null`, or absent: none, or nobody looked. */
  readonly failedStarts?: FailedStarts | null;
}

/** Starts of an instance that failed, one after the other, whoever asked for them. */
export interface FailedStarts {
  /** At least 1. */
  readonly count: number;
  readonly lastEnded: Date;
  /** The HTTP status of the last one's error. */
  readonly lastStatus: number;
}

/** The first pause after a start that was refused for good, and after one that may succeed the next time, in milliseconds. */
const REFUSED_PAUSE_MS = 60_000;
const FAILED_PAUSE_MS = 10_000;
/** No pause is longer, in milliseconds: somebody may have mended what was wrong. */
const MAX_PAUSE_MS = 15 * 60_000;

/**
 * How long an instance is left alone after its starts have failed, in milliseconds: twice as long each time. A refusal (4xx)
 * will be the same at once; what failed through a sled or for want of room is tried again at once the first time, since another
 * sled may do better.
 */
export function restartPauseMs({ count, lastStatus }: Pick<FailedStarts, 'count' | 'lastStatus'>): number {
  const refused = lastStatus >= 400 && lastStatus < 500;
  const doublings = refused ? count - 1 : count - 2;
  return doublings < 0 ? 0 : Math.min((refused ? REFUSED_PAUSE_MS : FAILED_PAUSE_MS) * 2 ** doublings, MAX_PAUSE_MS);
}

export type AutoRestartVerdict =
  | { readonly verdict: 'eligible' }
  | { readonly verdict: 'cooling-down'; readonly until: Date }
  | { readonly verdict: 'ineligible'; readonly reason: AutoRestartRefusal };

export const AUTO_RESTART_REFUSALS = ['not meant to run', 'policy never', 'neither failed nor unwound'] as const;
export type AutoRestartRefusal = (typeof AUTO_RESTART_REFUSALS)[number];

/**
 * Decides whether an instance is started again at `now`: it is Failed, or shows Stopped because its *automatic* start
 * unwound; it is meant to run; its policy is not `never`; and the cooldown since the last automatic restart is over, and the
 * pause after starts that failed. The first one needs no wait. One that the user asked to stop is never started again.
 */
export function autoRestartVerdict(facts: AutoRestartFacts, now: Date): AutoRestartVerdict {
  if (facts.intendedState !== 'running') return { verdict: 'ineligible', reason: 'not meant to run' };
  if ((facts.policy ?? DEFAULT_AUTO_RESTART_POLICY) === 'never')
    return { verdict: 'ineligible', reason: 'policy never' };
  const unwound = facts.externalState === 'stopped' && facts.lastStartReason === 'auto_restart';
  if (facts.externalState !== 'failed' && !unwound)
    return { verdict: 'ineligible', reason: 'neither failed nor unwound' };
  const { failedStarts = null } = facts;
  const paused = failedStarts === null ? 0 : failedStarts.lastEnded.getTime() + restartPauseMs(failedStarts);
  const until = new Date(Math.max(cooldownEnd(facts)?.getTime() ?? 0, paused));
  if (until > now) return { verdict: 'cooling-down', until };
  return { verdict: 'eligible' };
}

/** When the cooldown of an instance's last automatic restart ends; `null` when there was none. */
export function cooldownEnd(facts: Pick<AutoRestartFacts, 'timeLastAutoRestarted' | 'cooldownSeconds'>): Date | null {
  const { timeLastAutoRestarted: last, cooldownSeconds } = facts;
  return last === null ? null : new Date(last.getTime() + cooldownSeconds * 1000);
}
