/**
 * What an operator's word is enough for. A small world is the judge: a sled whose guest truly runs or not, whose agent
 * truly answers or not, with a lease or without. Whatever the word, no guest may be called lost while it runs, unless the
 * operator has said what nobody could check: that a silent sled without a lease is off.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LEASE_STANDINGS, type LeaseStanding } from '../../model/lease.ts';
import {
  type Arrival,
  explainMoveRefusal,
  explainRefusal,
  judgeWord,
  OPERATOR_WORDS,
  type OperatorWord,
  type SledFacts,
  type WordRefusal,
  type WordVerdict,
} from '../../model/operator-word.ts';

const LEASES: readonly (LeaseStanding | null)[] = [null, ...LEASE_STANDINGS];
const FACTS: readonly SledFacts[] = [true, false].flatMap((answers) =>
  LEASES.flatMap((lease) => [true, false].map((guests) => ({ answers, lease, guests }))),
);
const CELLS = OPERATOR_WORDS.flatMap((word) =>
  FACTS.flatMap((sled) => [true, false].map((poweredOff) => ({ word, sled, poweredOff }))),
);

const short = (judged: WordVerdict) => (judged.verdict === 'refuse' ? `refuse: ${judged.why}` : judged.verdict);

describe('an expunge', () => {
  const table: [string, SledFacts, string, string][] = [
    // What, the facts, without the word, with it.
    ['answers', { answers: true, lease: null, guests: true }, 'refuse: answers', 'when told'],
    ['answers, and is empty', { answers: true, lease: null, guests: false }, 'refuse: answers', 'at once'],
    ['answers with a lease', { answers: true, lease: 'held', guests: true }, 'refuse: answers', 'when lapsed'],
    ['is silent', { answers: false, lease: null, guests: true }, 'refuse: unsaid', 'at once'],
    ['is silent and empty', { answers: false, lease: null, guests: false }, 'at once', 'at once'],
    ['holds its lease', { answers: false, lease: 'held', guests: true }, 'refuse: lease', 'when lapsed'],
    ['holds it, and is empty', { answers: false, lease: 'held', guests: false }, 'refuse: lease', 'at once'],
    ['misses renewals', { answers: false, lease: 'late', guests: true }, 'refuse: lease', 'when lapsed'],
    ['is within its margin', { answers: false, lease: 'lapsed', guests: true }, 'refuse: lease', 'when lapsed'],
    ['could not renew', { answers: false, lease: 'unattended', guests: true }, 'refuse: lease', 'when lapsed'],
    ['has let its lease lapse', { answers: false, lease: 'dead', guests: true }, 'at once', 'at once'],
  ];
  test.each(table)('of a sled that %s', (_, sled, without, withIt) => {
    expect(short(judgeWord('expunge', sled, false))).toBe(without);
    expect(short(judgeWord('expunge', sled, true))).toBe(withIt);
  });
});

describe.each([...OPERATOR_WORDS])('%s', (word) => {
  const cells = CELLS.filter((cell) => cell.word === word);

  test('guests are given up at once only where nothing can run, or where nobody could know better than the operator', () => {
    for (const { sled, poweredOff } of cells) {
      if (short(judgeWord(word, sled, poweredOff)) !== 'at once' || !sled.guests) continue;
      const lapsed = sled.lease === 'dead';
      const nobodyKnows = !sled.answers && sled.lease === null && poweredOff;
      expect(lapsed || nobodyKnows, `${word} of ${JSON.stringify(sled)}, ${poweredOff}`).toBe(true);
    }
  });

  test('without the word a sled that answers, or may hold its lease, is refused where its guests are at stake', () => {
    for (const { sled, poweredOff } of cells) {
      if (poweredOff || !sled.guests || sled.lease === 'dead') continue;
      expect(judgeWord(word, sled, false).verdict, JSON.stringify(sled)).toBe('refuse');
    }
  });

  test('the word never takes away what is allowed without it', () => {
    for (const { sled } of cells) {
      if (judgeWord(word, sled, false).verdict === 'refuse') continue;
      expect(short(judgeWord(word, sled, true))).toBe('at once');
    }
  });

  test('a sled is told to end its guests only where it answers, and waited for only where a lease can end', () => {
    for (const { sled, poweredOff } of cells) {
      const judged = short(judgeWord(word, sled, poweredOff));
      if (judged === 'when told') expect([sled.answers, sled.lease]).toEqual([true, null]);
      if (judged === 'when lapsed') expect(['held', 'late', 'lapsed', 'unattended']).toContain(sled.lease);
    }
  });
});

test('what moves a sled to another machine is never taken of one whose guests may run, whatever is said', () => {
  for (const sled of FACTS)
    if (sled.answers || (sled.guests && sled.lease !== null && sled.lease !== 'dead'))
      expect(judgeWord('change-address', sled, true).verdict, JSON.stringify(sled)).toBe('refuse');
});

test('a sled that is declared dead, and has nothing that runs, moves whoever answers where it was; to no other word does that count', () => {
  for (const { word, sled, poweredOff } of CELLS) {
    const judged = short(judgeWord(word, { ...sled, dead: true }, poweredOff));
    if (word === 'change-address' && !sled.guests) expect(judged, JSON.stringify(sled)).toBe('at once');
    else expect(judged).toBe(short(judgeWord(word, sled, poweredOff)));
  }
});

describe('a change of address', () => {
  test('needs no word where the sled’s own agent has every VMM at the new one, and is silent at the former', () => {
    for (const sled of FACTS) {
      const judged = judgeWord('change-address', { ...sled, arrived: true }, false);
      expect(short(judged), JSON.stringify(sled)).toBe(sled.answers ? 'refuse: answers' : 'at once');
    }
  });

  test('is the only word for which it counts what has arrived', () => {
    for (const { word, sled, poweredOff } of CELLS)
      if (word !== 'change-address')
        expect(judgeWord(word, { ...sled, arrived: true }, poweredOff)).toEqual(judgeWord(word, sled, poweredOff));
  });

  test('says what is missing, and what to do, whoever is there', () => {
    const missing = Array.from({ length: 7 }, (_, index) => `VMM ${index}`);
    const base = { from: '10.0.0.1:1', to: '10.0.0.2:1', listed: true, missing };
    const said = (agent: Arrival['agent'], listed = true, why: WordRefusal = 'unsaid') =>
      explainMoveRefusal('one', { ...base, agent, listed }, why);
    expect(said('nobody')).toMatch(/nobody answers there.*declare it dead.*sled_powered_off: true/);
    expect(said('unknown')).toMatch(/nothing proves.*does not say who it is.*drain it.*declare it dead/);
    expect(said('another')).toMatch(/another one.*its own agent there, with its data/);
    expect(said('own')).toMatch(/does not have VMM 0, VMM 1, VMM 2, VMM 3, VMM 4 and 2 more: .*10\.0\.0\.1:1/);
    expect(said('own', false)).toMatch(/has not said which VMMs it has/);
    expect(said('own', true, 'lease')).toMatch(/lease has lapsed$/);
    // Of what is never believed, nothing is asked for that would not help.
    for (const why of ['lease', 'answers'] as const) expect(said('own', true, why)).not.toMatch(/sled_powered_off/);
  });
});

test('a refusal says what to do', () => {
  expect(explainRefusal('expunge', 'one', 'answers')).toMatch(
    /answers.*power it off.*drain it.*sled_powered_off: true/,
  );
  expect(explainRefusal('expunge', 'one', 'lease')).toMatch(/lease.*wait.*power it off.*sled_powered_off: true/);
  expect(explainRefusal('expunge', 'one', 'unsaid')).toMatch(/sled_powered_off: true/);
  // Of what is never believed, nothing is asked for that would not help.
  expect(explainRefusal('declare-dead', 'one', 'answers')).not.toMatch(/sled_powered_off/);
});

/** A sled as it truly is, with what the control plane can see of it. */
interface TrueSled {
  readonly fenced: boolean;
  powered: boolean;
  /** Nothing gets through, in either direction. */
  cut: boolean;
  certificates: 'good' | 'revoked';
  guests: boolean;
  /** Renewals since the last tick that it could not make: three and its guests are off, five and the margin is over. */
  missed: number;
  /** What was decided: nothing is begun there any more, it renews no lease. */
  leaving: boolean;
  /** Its guests are called lost: they run elsewhere. */
  lost: boolean;
}

const events = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('word' as const),
      word: fc.constantFrom<OperatorWord>(...OPERATOR_WORDS),
      honest: fc.boolean(),
    }),
  },
  { weight: 4, arbitrary: fc.constant({ kind: 'tick' as const }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('cut' as const), on: fc.boolean() }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'power off' as const }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'revoke' as const }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'told' as const }) },
);

function standing(sled: TrueSled): LeaseStanding | null {
  if (!sled.fenced) return null;
  return (['held', 'held', 'late', 'lapsed', 'lapsed', 'dead'] as const)[Math.min(sled.missed, 5)] ?? 'dead';
}

test('in whatever order words, leases, cuts and revocations come, no guest is called lost while it runs', () => {
  fc.assert(
    fc.property(fc.boolean(), fc.array(events, { minLength: 1, maxLength: 24 }), (fenced, script) => {
      const sled: TrueSled = {
        ...{ fenced, powered: true, cut: false, certificates: 'good', guests: true },
        ...{ missed: 0, leaving: false, lost: false },
      };
      for (const event of script) {
        switch (event.kind) {
          case 'cut':
            sled.cut = event.on;
            break;
          case 'power off':
            sled.powered = false;
            sled.guests = false;
            break;
          case 'revoke':
            sled.certificates = 'revoked';
            break;
          case 'tick': {
            const renews = sled.powered && !sled.cut && !sled.leaving && sled.certificates === 'good';
            sled.missed = renews ? 0 : sled.missed + 1;
            if (fenced && sled.missed >= 3) sled.guests = false;
            // The fencing loop.
            if (standing(sled) === 'dead') sled.lost = true;
            break;
          }
          case 'told':
            // It is commanded by who it knows, and its answer counts.
            if (sled.leaving && sled.powered && !sled.cut && sled.certificates === 'good') {
              sled.guests = false;
              sled.lost = true;
            }
            break;
          case 'word': {
            // A certificate that is good no more is no reason to take a sled for silent.
            const answers = sled.powered && !sled.cut;
            // Nobody could tell better: what an operator says of a silent sled without a lease must be true.
            const poweredOff = event.honest ? !sled.powered : sled.powered && (answers || fenced);
            const judged = judgeWord(event.word, { answers, lease: standing(sled), guests: !sled.lost }, poweredOff);
            if (judged.verdict === 'refuse') break;
            if (judged.verdict === 'at once') sled.lost = true;
            if (event.word === 'expunge') sled.leaving = true;
            break;
          }
        }
        expect(sled.lost && sled.guests, JSON.stringify(sled)).toBe(false);
      }
    }),
    { numRuns: 3_000 },
  );
});
