/** A short round of what `npm run fencing` does for as long as one likes. */
import { expect, test } from 'vitest';
import { runRandomFencing } from './random-fencing.ts';

test('faults at random for a quarter of a minute: no guest runs twice, and everything comes back', {
  timeout: 600_000,
}, async () => {
  const seed = 7;
  const output: string[] = [];
  const report = await runRandomFencing({ seed, durationMs: 15_000, print: (message) => output.push(message) }).catch(
    (error: Error) => {
      throw new Error(`seed ${seed}: ${error.message}\n${output.join('\n')}`);
    },
  );
  expect(report.guestsBegun).toBeGreaterThan(0);
});
