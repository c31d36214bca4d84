/** A short soak of a fixed plan on real processes; `npm run soak` runs longer ones. */
import { expect, test } from 'vitest';
import { KILL_TARGETS, makePlan } from './plan.ts';
import { runSoak } from './soak.ts';

const plan = makePlan({
  seed: 119,
  durationMs: 35_000,
  instances: 40,
  workers: 2,
  apis: 2,
  sleds: 4,
  operationsPerSecond: 8,
  // Two more workers have no time to come up.
  without: ['deploy'],
});

test('nothing is wrong after operations on many instances while everything was killed and messages went astray', {
  timeout: 900_000,
}, async () => {
  const output: string[] = [];
  const report = await runSoak({ plan, print: (message) => output.push(message) });
  expect(report.violations, `${output.join('\n')}\ndata and logs are in ${report.kept}`).toEqual([]);
  expect(report.restMs).not.toBeNull();
  // It was no idle walk.
  for (const target of KILL_TARGETS) expect(report.faults[`kill ${target}`]).toBeGreaterThan(0);
  // On a busy machine some find nobody at that moment.
  for (const fault of [
    'silent sled',
    'expunge',
    'attributes',
    'drain',
    'impostor',
    'freeze postgres',
    'full-disk',
    'clock',
  ])
    expect(Object.keys(report.consequences).filter((name) => name.startsWith(fault))).not.toEqual([]);
  expect(report.messages.delayed + report.messages.duplicated + report.messages.lost).toBeGreaterThan(0);
  expect(report.sagas.succeeded ?? 0).toBeGreaterThan(0);
});
