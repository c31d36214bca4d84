/**
 * What an operator's word that a sled is off is enough for: a decision without I/O, so that every combination can be tried.
 *
 * A guest may be called lost, and begin elsewhere, only where it can't still run. Three things prove that, none of them
 * silence: the sled has said itself that it ended the guest; the sled's lease has lapsed, with its margin; or the sled is
 * silent, has no lease, and an operator has said that it is powered off or removed. A word about a sled that answers is
 * wrong, or is about another machine: it can take the sled out of the installation, but it ends no guest by itself.
 */
import type { LeaseStanding } from './lease.ts';

/**
 * The ways in which such a word is taken. `change-address` and `rejoin` are about the machine at the sled's former address:
 * at another one the sled's VMMs would not be found, and be called lost.
 */
export const OPERATOR_WORDS = ['expunge', 'declare-dead', 'force-stop', 'change-address', 'rejoin'] as const;
export type OperatorWord = (typeof OPERATOR_WORDS)[number];

/** What is known of a sled when a word about it is taken. */
export interface SledFacts {
  /** Something answers at its address, whoever that is and whatever it says: the machine is powered on. */
  readonly answers: boolean;
  /** How its lease stands; `null`: it has none, so that nothing but its own answer proves anything about its guests. */
  readonly lease: LeaseStanding | null;
  /** VMMs are placed there whose guests may run. */
  readonly guests: boolean;
}

/** Why a word is not taken: the sled answers; it may hold a lease; nobody has said that it is off. */
export type WordRefusal = 'answers' | 'lease' | 'unsaid';

/**
 * `at once`: the guests are off, by all that can be known, or there are none. `when lapsed`: the sled's lease ends them, and
 * they are lost when it has lapsed. `when told`: the sled answers, and is told to end them; its answer counts.
 */
export type WordVerdict =
  | { readonly verdict: 'refuse'; readonly why: WordRefusal }
  | { readonly verdict: 'at once' | 'when lapsed' | 'when told' };

const refuse = (why: WordRefusal): WordVerdict => ({ verdict: 'refuse', why });
const take = (verdict: 'at once' | 'when lapsed' | 'when told'): WordVerdict => ({ verdict });

/**
 * Decides what a word is enough for. `poweredOff`: the operator states that the sled is powered off or removed. Source of the
 * questions: Omicron's omdb asks before it expunges a sled that its latest inventory has, and has its serial number typed.
 */
export function judgeWord(word: OperatorWord, sled: SledFacts, poweredOff: boolean): WordVerdict {
  const { answers, lease, guests } = sled;
  const off = lease === 'dead';
  const leased = lease !== null && !off;
  switch (word) {
    case 'expunge':
      if (!poweredOff) {
        if (answers) return refuse('answers');
        if (leased) return refuse('lease');
        return guests && !off ? refuse('unsaid') : take('at once');
      }
      if (!guests || off) return take('at once');
      if (leased) return take('when lapsed');
      return take(answers ? 'when told' : 'at once');
    case 'declare-dead':
    case 'force-stop':
      if (!poweredOff) return refuse('unsaid');
      if (answers) return refuse('answers');
      return take(leased ? 'when lapsed' : 'at once');
    case 'change-address':
    case 'rejoin':
      // The sled's VMMs are looked for at the new address from then on: nobody could tell the former one to end them.
      if (!guests || off) return take('at once');
      if (answers) return refuse('answers');
      if (leased) return refuse('lease');
      return poweredOff ? take('at once') : refuse('unsaid');
  }
}

/** Why the word about a sled of that name was not taken, and what to do, for the operator. */
export function explainRefusal(word: 'expunge' | 'declare-dead' | 'change-address', name: string, why: WordRefusal) {
  const what = {
    expunge: "can't be expunged",
    'declare-dead': "can't be declared dead",
    'change-address': "can't be moved to another address",
  }[word];
  const insist =
    word === 'expunge' ? '; if this machine is powered off or removed, say so (sled_powered_off: true)' : '';
  switch (why) {
    case 'answers':
      return `sled "${name}" ${what}: it answers, so it is powered on, and its guests would run twice: power it off first, or drain it${insist}`;
    case 'lease':
      return `sled "${name}" ${what} yet: it may hold its lease, and run its guests: wait until that has lapsed, or power it off${insist}`;
    case 'unsaid':
      return `sled "${name}" ${what} without your word for it: its guests are started elsewhere, and run twice if they still run there. Power it off and say so (sled_powered_off: true)`;
  }
}
