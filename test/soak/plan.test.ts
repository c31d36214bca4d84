import fc from 'fast-check';
import { expect, test } from 'vitest';
import { drawFate } from './network.ts';
import { Dice, type FaultKind, KILL_TARGETS, makePlan, type PlanOptions, sledKind } from './plan.ts';

const anyOptions: fc.Arbitrary<PlanOptions> = fc.record({
  seed: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  durationMs: fc.integer({ min: 5_000, max: 120_000 }),
  instances: fc.integer({ min: 1, max: 80 }),
  workers: fc.integer({ min: 1, max: 4 }),
  apis: fc.integer({ min: 1, max: 4 }),
  sleds: fc.integer({ min: 1, max: 6 }),
  operationsPerSecond: fc.integer({ min: 1, max: 20 }),
});
const options: PlanOptions = {
  seed: 7,
  durationMs: 300_000,
  instances: 200,
  workers: 2,
  apis: 2,
  sleds: 4,
  operationsPerSecond: 8,
};

test('the same options give the same plan', () => {
  fc.assert(
    fc.property(anyOptions, (given) => {
      expect(makePlan(given)).toEqual(makePlan({ ...given }));
    }),
  );
});

test('another seed gives another plan', () => {
  const plans = [1, 2, 3, 4, 5].map((seed) => JSON.stringify(makePlan({ ...options, seed })));
  expect(new Set(plans).size).toBe(plans.length);
});

test('every operation and fault is in time, in order, and names what is there', () => {
  fc.assert(
    fc.property(anyOptions, (given) => {
      const { operations, faults } = makePlan(given);
      for (const list of [operations, faults])
        for (const [index, { atMs }] of list.entries()) {
          expect(atMs).toBeGreaterThanOrEqual(list[index - 1]?.atMs ?? 0);
          expect(atMs).toBeLessThanOrEqual(given.durationMs);
        }
      for (const { slot, api, sled } of operations) {
        expect(slot).toBeLessThan(given.instances);
        expect(api).toBeLessThan(given.apis);
        expect(sled).toBeLessThan(given.sleds);
      }
      const counts = { worker: given.workers, api: given.apis, 'sled-agent': given.sleds, postgres: 1, temporal: 1 };
      for (const fault of faults) {
        if (fault.kind === 'kill' || fault.kind === 'freeze') expect(fault.index).toBeLessThan(counts[fault.target]);
        if ('sled' in fault) expect(fault.sled).toBeLessThan(given.sleds);
        if ('slot' in fault) expect(fault.slot).toBeLessThan(given.instances);
      }
    }),
    { numRuns: 50 },
  );
});

test('a process is not killed again before it can be up', () => {
  const { faults } = makePlan(options);
  const upAgainMs = new Map<string, number>();
  for (const fault of faults) {
    if (fault.kind !== 'kill') continue;
    const key = `${fault.target}/${fault.index}`;
    expect(fault.atMs).toBeGreaterThan(upAgainMs.get(key) ?? -1);
    upAgainMs.set(key, fault.atMs + fault.downMs);
  }
  expect(new Set([...upAgainMs.keys()].map((key) => key.split('/')[0]))).toEqual(new Set(KILL_TARGETS));
});

const EVERY_KIND = [
  ...[
    'kill',
    'weather',
    'guest',
    'refusal',
    'migration',
    'impostor',
    'full-disk',
    'silent-sled',
    'clock',
    'word',
    'drain',
  ],
  ...['attributes', 'freeze', 'freeze-postgres', 'slip', 'deploy'],
] as FaultKind[];

test('every kind of fault comes, however short the run and whatever the seed, but for what is left out', () => {
  fc.assert(
    fc.property(fc.integer(), fc.subarray(EVERY_KIND), (seed, without) => {
      const { faults } = makePlan({ ...options, seed, durationMs: 60_000, without });
      const kinds = new Set(faults.map(({ kind }) => kind));
      expect(kinds).toEqual(new Set(EVERY_KIND.filter((kind) => !without.includes(kind))));
      const targets = new Set(faults.flatMap((fault) => (fault.kind === 'kill' ? [fault.target] : [])));
      expect(targets).toEqual(new Set(without.includes('kill') ? [] : KILL_TARGETS));
    }),
    { numRuns: 50 },
  );
});

test('a word is only false about a sled whose lease makes it true', () => {
  fc.assert(
    fc.property(anyOptions, (given) => {
      for (const fault of makePlan(given).faults)
        if (fault.kind === 'word' && fault.state !== 'off') expect(sledKind(fault.sled)).toBe('fenced');
    }),
    { numRuns: 50 },
  );
});

test('one sled is not silenced twice at a time, and most are there to take the guests', () => {
  fc.assert(
    fc.property(anyOptions, (given) => {
      const silences = makePlan(given).faults.flatMap((fault) =>
        fault.kind === 'silent-sled'
          ? [{ sled: fault.sled, fromMs: fault.atMs, untilMs: fault.atMs + fault.durationMs }]
          : fault.kind === 'word'
            ? [{ sled: fault.sled, fromMs: fault.atMs, untilMs: fault.atMs + fault.afterMs }]
            : [],
      );
      for (const [index, one] of silences.entries()) {
        const besides = silences.slice(index + 1).filter((other) => other.fromMs < one.untilMs);
        expect(besides.map(({ sled }) => sled)).not.toContain(one.sled);
        const beginning = silences.filter(({ fromMs, untilMs }) => fromMs <= one.fromMs && one.fromMs < untilMs);
        expect(beginning.length).toBeLessThanOrEqual(Math.max(1, given.sleds - 2));
      }
    }),
    { numRuns: 50 },
  );
});

test('a plan for nothing is refused, by the name of the option', () => {
  expect(() => makePlan({ ...options, sleds: 0 })).toThrow(/sleds/);
  expect(() => makePlan({ ...options, durationMs: Number.NaN })).toThrow(/durationMs/);
});

test('what befalls the messages of a link follows from the seed alone', () => {
  const weather = { delay: 0.5, maxDelayMs: 1_000, duplicate: 0.3, loseRequest: 0.2, loseAnswer: 0.2 };
  const fates = (seed: number) => {
    const dice = new Dice(seed);
    return Array.from({ length: 200 }, () => drawFate(dice, weather));
  };
  expect(fates(3)).toEqual(fates(3));
  expect(fates(3)).not.toEqual(fates(4));
  const drawn = fates(3);
  expect(drawn.some((fate) => fate.delayMs > 0)).toBe(true);
  expect(drawn.some((fate) => fate.againAfterMs !== null)).toBe(true);
  expect(new Set(drawn.map((fate) => fate.lost))).toEqual(new Set(['no', 'request', 'answer']));
});
