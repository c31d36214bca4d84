import { afterAll, beforeAll, expect, test } from 'vitest';
import { playScenario } from '../../cli/play-scenario.ts';
import { parseScenario, readScenario } from '../../cli/scenario.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';

let stack: RunningStack;
beforeAll(async () => {
  stack = await startStack({
    sleds: 3,
    transitionMs: 10,
    reconcileEveryMs: 1_000,
    env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: '' },
  });
});
afterAll(() => stack?.stop());

test('the demo’s scenario ends as it says, on real parts', async () => {
  const scenario = await readScenario(new URL('../../cli/demo.yaml', import.meta.url).pathname);
  const results = await playScenario(stack, scenario, () => {});
  expect(results.filter((result) => result.problems.length > 0)).toEqual([]);
  expect(results).toHaveLength(scenario.steps.length);
});

test('a scenario with a wrong field is refused by the name of the step and the field', () => {
  expect(() => parseScenario('steps: [{title: x, do: {start: a}, expect: {external_state: flying}}]')).toThrow(
    /steps\[0\]\.expect\.external_state/,
  );
});
