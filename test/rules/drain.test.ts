import { describe, expect, test } from 'vitest';
import { type DrainProgress, describeDrain, drainDetails, drainStep } from '../../model/drain.ts';
import { EXTERNAL_STATES } from '../../model/states.ts';

describe('what a drain does about an instance', () => {
  test.each(EXTERNAL_STATES)('%s', (externalState) => {
    expect(drainStep(externalState, 'elsewhere')).toBe('left');
    expect(drainStep(externalState, 'target')).toBe('wait');
    const here = drainStep(externalState, 'active');
    if (externalState === 'running') expect(here).toBe('move');
    else expect(here).toBe(['stopped', 'failed'].includes(externalState) ? 'left' : 'wait');
  });
});

test('its progress fits one line', () => {
  const entry = { instanceId: 'i', name: 'web', detail: 'why' };
  const progress: DrainProgress = {
    sledId: 's',
    sledName: 'sled-1',
    state: 'running',
    total: 5,
    moved: 2,
    ended: 1,
    moving: [entry],
    waiting: [],
    couldNotMove: [entry],
    parallel: 4,
    stopReason: null,
  };
  expect(describeDrain(progress)).toBe(
    'draining sled-1: 2 of 5 moved, 1 ended by themselves, 1 moving, 1 could not move',
  );
  expect(describeDrain({ ...progress, state: 'drained', ended: 0, moving: [], couldNotMove: [] })).toBe(
    'sled-1 is drained: 2 of 5 moved',
  );
  expect(describeDrain({ ...progress, state: 'stopped', stopReason: 'by an operator' })).toMatch(
    /stopped \(by an operator\)/,
  );
  expect(describeDrain({ ...progress, state: 'incomplete' })).toMatch(/not drained.*1 could not move/);
  const details = drainDetails({
    ...progress,
    moving: [{ ...entry, detail: 'sled-2' }],
    couldNotMove: [{ ...entry, name: 'shop', detail: 'refused *twice*' }],
  });
  expect(details.split('\n')).toEqual([
    `**${describeDrain(progress)}**`,
    '',
    'Moving, at most 4 at a time:',
    '',
    '- **web** → sled-2',
    '',
    'Could not move:',
    '',
    '- **shop**: refused \\*twice\\*',
  ]);
});
