import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  bytesPerSecond,
  describeMigration,
  type MigrationObservation,
  migrationDetails,
  migrationOutcome,
} from '../../model/migration-progress.ts';
import { MIGRATION_STATES } from '../../model/states.ts';

const MIB = 1024 ** 2;
const observation: MigrationObservation = {
  outcome: 'under way',
  instanceName: 'web',
  sourceSledName: 'sled-1',
  sledName: 'sled-2',
  sourceState: 'in_progress',
  targetState: 'in_progress',
  figures: {
    bytesTotal: 96 * MIB,
    bytesSent: 24 * MIB,
    bytesLeft: 72 * MIB,
    bytesPerSecond: 12 * MIB,
    expectedDowntimeMs: 20,
    downtimeMs: null,
    elapsedMs: 2_000,
  },
};

describe('a migration is over when both sides are, or when its instance names it no more', () => {
  const cells = MIGRATION_STATES.flatMap((sourceState) =>
    MIGRATION_STATES.flatMap((targetState) => [true, false].map((linked) => ({ sourceState, targetState, linked }))),
  );
  test.each(cells)('source $sourceState, target $targetState, linked $linked', (sides) => {
    const bothOver = [sides.sourceState, sides.targetState].every((state) => ['completed', 'failed'].includes(state));
    const expected =
      sides.linked && !bothOver ? 'under way' : sides.targetState === 'completed' ? 'completed' : 'failed';
    expect(migrationOutcome(sides)).toBe(expected);
  });
});

test('how fast it goes is what came since the look before, and never less than nothing', () => {
  expect(bytesPerSecond({ bytesSent: 300, elapsedMs: 3_000 }, { bytesSent: 100, elapsedMs: 2_000 })).toBe(200);
  expect(bytesPerSecond({ bytesSent: 300, elapsedMs: 3_000 }, null)).toBe(100);
  expect(bytesPerSecond({ bytesSent: 300, elapsedMs: 3_000 }, { bytesSent: 300, elapsedMs: 3_000 })).toBe(100);
  expect(bytesPerSecond({ bytesSent: 0, elapsedMs: 0 }, null)).toBe(null);
  const look = fc.record({ bytesSent: fc.nat(), elapsedMs: fc.nat() });
  fc.assert(fc.property(look, fc.option(look), (now, before) => (bytesPerSecond(now, before) ?? 0) >= 0));
});

test('its details show bytes left, throughput and downtime; where no sled gives figures, its sides only', () => {
  expect(describeMigration(observation)).toBe(
    'under way: 72.0 MiB of 96.0 MiB left, 12.0 MiB/s, expected downtime 20 ms, 2.0 s so far',
  );
  expect(migrationDetails(observation).split('\n')).toEqual([
    '**web · sled-1 → sled-2**',
    '',
    '**under way**: 72.0 MiB of 96.0 MiB left, 12.0 MiB/s, expected downtime 20 ms, 2.0 s so far',
    '',
    '- source: in progress',
    '- destination: in progress',
    `- bytes left: ${72 * MIB} (72.0 MiB); sent: 24.0 MiB; in all: 96.0 MiB`,
    '- throughput: 12.0 MiB/s',
    '- downtime of the guest: expected 20 ms',
    '- time: 2.0 s',
  ]);
  const figures = { ...(observation.figures as NonNullable<MigrationObservation['figures']>), downtimeMs: 312 };
  expect(describeMigration({ ...observation, outcome: 'completed', figures })).toBe(
    'completed: 24.0 MiB sent in 2.0 s, 12.0 MiB/s, the guest stood still for 312 ms',
  );
  expect(migrationDetails({ ...observation, figures: null })).toMatch(/under way.*source in progress[\s\S]*no figures/);
});
