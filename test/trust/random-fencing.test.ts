/** A short round of what `npm run fencing` does for as long as one likes. */
import { randomInt } from 'node:crypto';
import { expect, test } from 'vitest';
import { runRandomFencing } from './random-fencing.ts';

test('faults at random for half a minute: no guest runs twice, and everything comes back', {
  timeout: 300_000,
}, async () => {
  const seed = randomInt(2 ** 31);
  const said: string[] = [];
  const report = await runRandomFencing({ seed, durationMs: 30_000, say: (message) => said.push(message) }).catch(
    (error: Error) => {
      throw new Error(`seed ${seed}: ${error.message}\n${said.join('\n')}`);
    },
  );
  expect(report.guestsBegun).toBeGreaterThan(0);
});
