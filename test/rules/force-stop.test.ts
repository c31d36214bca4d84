import { describe, expect, test } from 'vitest';
import { judgeForceStop, SLED_STANDINGS, type SledStanding } from '../../model/force-stop.ts';

const side = (standing: SledStanding, n = 1) => ({ vmmId: `v${n}`, sledName: `sled-${n}`, standing });

describe('a stop by force with one living VMM', () => {
  const table: [SledStanding, boolean, string][] = [
    ['answers', false, 'refuse: use stop'],
    ['answers', true, 'refuse: use stop'],
    ['silent', false, 'refuse: sled_powered_off'],
    ['silent', true, 'stop: v1'],
    ['leased', false, 'refuse: sled_powered_off'],
    ['leased', true, 'stop: '],
    ['given-up', false, 'stop: '],
    ['given-up', true, 'stop: '],
  ];
  test.each(table)('whose sled is: %s, declared to be off: %s → %s', (standing, off, expected) => {
    expect(describeVerdict(judgeForceStop('web', [side(standing)], off), expected)).toBe(expected);
  });
});

describe('a stop by force with both sides of a migration', () => {
  const cells = SLED_STANDINGS.flatMap((a) => SLED_STANDINGS.map((b) => [a, b] as const));
  test.each(cells)('%s and %s', (a, b) => {
    for (const off of [false, true]) {
      const judged = judgeForceStop('web', [side(a, 1), side(b, 2)], off);
      const silent = [a, b].filter((standing) => standing === 'silent' || standing === 'leased').length;
      const answers = [a, b].includes('answers');
      if (silent === 0) expect(judged.verdict).toBe(answers ? 'refuse' : 'stop');
      else expect(judged.verdict).toBe(off ? 'stop' : 'refuse');
      // Only what is silent is ever failed.
      if (judged.verdict === 'stop') {
        const expected = [a === 'silent' ? 'v1' : '', b === 'silent' ? 'v2' : ''].filter((id) => id !== '');
        expect(judged.vouched).toEqual(expected);
      } else expect(judged.message).toMatch(/sled "sled-\d"/);
    }
  });
});

test('an instance without a living VMM is only stopped', () => {
  expect(judgeForceStop('web', [], false)).toEqual({ verdict: 'stop', vouched: [] });
});

function describeVerdict(judged: ReturnType<typeof judgeForceStop>, expected: string): string {
  if (judged.verdict === 'stop') return `stop: ${judged.vouched.join(' ')}`;
  const hint = expected.replace('refuse: ', '');
  return judged.message.includes(hint) ? expected : judged.message;
}
