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
 * The ways in which such a word is taken. `change-address` (of an operator, or by joining again) is about the machine at the
 * sled's former address: at another one the sled's VMMs would not be found, and be called lost.
 */
export const OPERATOR_WORDS = ['expunge', 'declare-dead', 'force-stop', 'change-address'] as const;
export type OperatorWord = (typeof OPERATOR_WORDS)[number];

/** What is known of a sled when a word about it is taken. */
export interface SledFacts {
  /** Something answers at its address, whoever that is and whatever it says: the machine is powered on. */
  readonly answers: boolean;
  /** How its lease stands; `null`: it has none, so that nothing but its own answer proves anything about its guests. */
  readonly lease: LeaseStanding | null;
  /** VMMs are placed there whose guests may run. */
  readonly guests: boolean;
  /** It is declared dead: none of its guests is counted on, wherever it answers. */
  readonly dead?: boolean;
  /** The sled's own agent, by its id, is at the address to which the sled is to move, and has every one of its VMMs. */
  readonly arrived?: boolean;
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
  const { answers, lease, guests, dead = false, arrived = false } = sled;
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
      // Nothing of it is anywhere, and by now somebody else may have its address.
      if (dead && !guests) return take('at once');
      // The sled's VMMs are looked for at the new address from then on: nobody could tell the former one to end them.
      if (answers) return refuse('answers');
      if (!guests || off || arrived) return take('at once');
      if (leased) return refuse('lease');
      return poweredOff ? take('at once') : refuse('unsaid');
  }
}

/** Why the word about a sled of that name was not taken, and what to do, for the operator. */
export function explainRefusal(word: 'expunge' | 'declare-dead', name: string, why: WordRefusal): string {
  const what = { expunge: "can't be expunged", 'declare-dead': "can't be declared dead" }[word];
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

/** What is known of the agent at the address to which a sled is to move. */
export interface Arrival {
  readonly from: string;
  readonly to: string;
  /** `nobody` answers; it is `unknown` who it is, or who the sled's own one is; `another` one, by its id; the sled's `own`. */
  readonly agent: 'nobody' | 'unknown' | 'another' | 'own';
  /** It has said which VMMs it has. */
  readonly listed: boolean;
  /** The sled's VMMs that it does not have, a word for each. */
  readonly missing: readonly string[];
}

/** How many VMMs a message names. */
const NAMED_VMMS = 5;

/** Why a sled of that name can't move, and what to do, for the operator. */
export function explainMoveRefusal(name: string, arrival: Arrival, why: WordRefusal): string {
  const { from, to, agent, listed, missing } = arrival;
  if (why === 'answers')
    return `sled "${name}" answers at ${from}: end its agent there first, and start it with its data at the new address`;
  const more = missing.length - NAMED_VMMS;
  const named = `${missing.slice(0, NAMED_VMMS).join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
  const what = {
    nobody: 'nobody answers there: start its agent there first, with its data',
    unknown: 'nothing proves that the agent there is its own, since it does not say who it is, or did not before',
    another: 'the agent there is another one, which does not have them: start its own agent there, with its data',
    own: listed
      ? `its agent there does not have ${named}: start it with the data that it had at ${from}`
      : 'its agent there has not said which VMMs it has: try again when it does',
  }[agent];
  const otherwise =
    why === 'lease'
      ? 'or drain it first, or wait until its lease has lapsed'
      : `or drain it first, or, when the machine at ${from} is powered off, declare it dead first, or say so (sled_powered_off: true): what is not found at ${to} is lost then`;
  const where = from === to ? '' : `, and are looked for at ${to} once it is there`;
  return `address: VMs of sled "${name}" live at ${from}${where}; ${what}, ${otherwise}`;
}
