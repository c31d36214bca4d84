/** Which instances are started again by themselves: every combination, and the edges of the cooldown. */
import { describe, expect, test } from 'vitest';
import { type AutoRestartFacts, autoRestartVerdict, cooldownEnd } from '../../model/auto-restart.ts';
import { AUTO_RESTART_POLICIES, EXTERNAL_STATES, INTENDED_STATES, START_REASONS } from '../../model/states.ts';

const now = new Date('2030-01-01T00:10:00Z');
const ago = (seconds: number) => new Date(now.getTime() - seconds * 1000);
const failed: AutoRestartFacts = {
  externalState: 'failed',
  intendedState: 'running',
  policy: null,
  lastStartReason: 'user',
  timeLastAutoRestarted: null,
  cooldownSeconds: 300,
};

describe('every combination of what is shown, intended, asked and started', () => {
  const cells = EXTERNAL_STATES.flatMap((externalState) =>
    INTENDED_STATES.flatMap((intendedState) =>
      [null, ...AUTO_RESTART_POLICIES].flatMap((policy) =>
        [null, ...START_REASONS].map((lastStartReason) => ({ externalState, intendedState, policy, lastStartReason })),
      ),
    ),
  );
  test(`${cells.length} of them: eligible exactly as the rule says`, () => {
    for (const cell of cells) {
      const came =
        cell.externalState === 'failed' ||
        (cell.externalState === 'stopped' && cell.lastStartReason === 'auto_restart');
      const expected = cell.intendedState === 'running' && cell.policy !== 'never' && came;
      const judged = autoRestartVerdict({ ...failed, ...cell }, now);
      expect(judged.verdict === 'eligible', JSON.stringify(cell)).toBe(expected);
      // Nothing that is ineligible becomes eligible by waiting.
      const cooling = autoRestartVerdict({ ...failed, ...cell, timeLastAutoRestarted: ago(10) }, now);
      expect(cooling.verdict, JSON.stringify(cell)).toBe(expected ? 'cooling-down' : 'ineligible');
    }
  });
});

describe('what matters to a user', () => {
  const cases: [string, Partial<AutoRestartFacts>, string][] = [
    ['the first restart needs no wait', {}, 'eligible'],
    ['an unset policy means best_effort', { policy: null }, 'eligible'],
    ['policy never', { policy: 'never' }, 'ineligible'],
    ['the user asked to stop it', { intendedState: 'stopped' }, 'ineligible'],
    ['its guest shut itself down', { externalState: 'stopped', intendedState: 'guest_shutdown' }, 'ineligible'],
    ['the start that the user asked for unwound: the user got the error', { externalState: 'stopped' }, 'ineligible'],
    ['its automatic start unwound', { externalState: 'stopped', lastStartReason: 'auto_restart' }, 'eligible'],
    [
      'its automatic start unwound a moment ago',
      { externalState: 'stopped', lastStartReason: 'auto_restart', timeLastAutoRestarted: ago(1) },
      'cooling-down',
    ],
    ['a moment before the cooldown is over', { timeLastAutoRestarted: ago(299.999) }, 'cooling-down'],
    ['the moment that the cooldown is over', { timeLastAutoRestarted: ago(300) }, 'eligible'],
    ['no cooldown at all', { timeLastAutoRestarted: now, cooldownSeconds: 0 }, 'eligible'],
  ];
  test.each(cases)('%s', (_, facts, expected) => {
    expect(autoRestartVerdict({ ...failed, ...facts }, now).verdict).toBe(expected);
  });
  test('the end of the cooldown is counted from the last automatic restart', () => {
    expect(cooldownEnd(failed)).toBeNull();
    expect(cooldownEnd({ timeLastAutoRestarted: ago(300), cooldownSeconds: 300 })).toEqual(now);
  });
});
