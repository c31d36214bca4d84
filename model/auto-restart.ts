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
}

export type AutoRestartVerdict =
  | { readonly verdict: 'eligible' }
  | { readonly verdict: 'cooling-down'; readonly until: Date }
  | { readonly verdict: 'ineligible'; readonly reason: AutoRestartRefusal };

export const AUTO_RESTART_REFUSALS = ['not meant to run', 'policy never', 'neither failed nor unwound'] as const;
export type AutoRestartRefusal = (typeof AUTO_RESTART_REFUSALS)[number];

/**
 * Decides whether an instance is started again at `now`: it is Failed, or shows Stopped because its *automatic* start
 * unwound; it is meant to run; its policy is not `never`; and the cooldown since the last automatic restart is over. The
 * first one needs no wait. One that the user asked to stop is never started again.
 */
export function autoRestartVerdict(facts: AutoRestartFacts, now: Date): AutoRestartVerdict {
  if (facts.intendedState !== 'running') return { verdict: 'ineligible', reason: 'not meant to run' };
  if ((facts.policy ?? DEFAULT_AUTO_RESTART_POLICY) === 'never')
    return { verdict: 'ineligible', reason: 'policy never' };
  const unwound = facts.externalState === 'stopped' && facts.lastStartReason === 'auto_restart';
  if (facts.externalState !== 'failed' && !unwound)
    return { verdict: 'ineligible', reason: 'neither failed nor unwound' };
  const until = cooldownEnd(facts);
  if (until !== null && until > now) return { verdict: 'cooling-down', until };
  return { verdict: 'eligible' };
}

/** When the cooldown of an instance's last automatic restart ends; `null` when there was none. */
export function cooldownEnd(facts: Pick<AutoRestartFacts, 'timeLastAutoRestarted' | 'cooldownSeconds'>): Date | null {
  const { timeLastAutoRestarted: last, cooldownSeconds } = facts;
  return last === null ? null : new Date(last.getTime() + cooldownSeconds * 1000);
}
