/** Whether an instance may be stopped by force: a decision without I/O, so that every combination can be tried. */
import { judgeWord, type SledFacts } from './operator-word.ts';

/**
 * What is known of the sled of a living VMM: `answers` (it is powered on, whatever was said), `silent` (which proves
 * nothing by itself), `leased` (silent too, and it may hold a lease, which alone ends its guests), or `given-up` (expunged,
 * declared dead, or stated to be powered off before: nothing is awaited from there).
 */
export const SLED_STANDINGS = ['answers', 'silent', 'leased', 'given-up'] as const;
export type SledStanding = (typeof SLED_STANDINGS)[number];

/** What is known of the sled of a living VMM, by what is known of that sled. */
export function standingOf(sled: SledFacts): SledStanding {
  const judged = judgeWord('force-stop', sled, true);
  if (judged.verdict === 'refuse') return 'answers';
  return judged.verdict === 'when lapsed' ? 'leased' : 'silent';
}

/** A living VMM that the instance names, and what is known of its sled. */
export interface ForceStopSide {
  readonly vmmId: string;
  readonly sledName: string;
  readonly standing: SledStanding;
}

export type ForceStopVerdict =
  /** Fail the VMMs `vouched`; the stop is carried to the others, or their sled's lease ends them. */
  | { readonly verdict: 'stop'; readonly vouched: readonly string[] }
  | { readonly verdict: 'refuse'; readonly message: string };

/**
 * Decides a stop by force. It goes ahead only where no guest can be left running unseen: every silent sled must be
 * vouched for (`sledPoweredOff`), and a sled that answers is not believed to be off. With a silent side beside one that
 * answers, only the silent one is failed. One whose sled may hold its lease is lost when that has lapsed, and no sooner.
 */
export function judgeForceStop(
  name: string,
  sides: readonly ForceStopSide[],
  sledPoweredOff: boolean,
): ForceStopVerdict {
  const named = (...standings: SledStanding[]) =>
    sides
      .filter((side) => standings.includes(side.standing))
      .map((side) => `sled "${side.sledName}"`)
      .join(' and ');
  const silent = sides.filter((side) => side.standing === 'silent').map((side) => side.vmmId);
  const unheard = sides.some((side) => side.standing === 'silent' || side.standing === 'leased');
  const answering = sides.some((side) => side.standing === 'answers');
  if (!unheard && answering) {
    return {
      verdict: 'refuse',
      message: `instance "${name}" can't be stopped by force: ${named('answers')} answers, so it is powered on: use stop, or power it off first`,
    };
  }
  if (unheard && !sledPoweredOff) {
    return {
      verdict: 'refuse',
      message: `instance "${name}" can't be stopped by force yet: ${named('silent', 'leased')} doesn't answer, but the guest may still run there; power it off and say so (sled_powered_off: true), or expunge the sled if it is gone for good`,
    };
  }
  return { verdict: 'stop', vouched: silent };
}
