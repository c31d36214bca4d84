/** The arithmetic of leases: whoever is declared dead has powered its guests off before, and nobody is because we were away. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type LeaseFacts,
  leaseStanding,
  marginMs,
  RENEWALS_PER_LEASE,
  shortestGapMs,
  shortestLeaseMs,
  tolerableGapMs,
  watchdogGraceMs,
} from '../../model/lease.ts';

const LEASE = 30_000;
const NOW = 1_000_000;
const facts = (ageMs: number, changes: Partial<LeaseFacts> = {}): LeaseFacts => ({
  nowMs: NOW,
  renewedMs: NOW - ageMs,
  leaseMs: LEASE,
  lastBeatMs: NOW - 500,
  gaps: [],
  ...changes,
});
const gap = (beganAgo: number, endedAgo: number) => ({ beganMs: NOW - beganAgo, endedMs: NOW - endedAgo });

describe('how a lease stands', () => {
  test.each([
    ['just renewed', facts(0), 'held'],
    ['renewed a third ago', facts(LEASE / 3), 'held'],
    ['two renewals missed', facts((LEASE * 2) / 3), 'late'],
    ['about to be over', facts(LEASE - 1), 'late'],
    ['over', facts(LEASE), 'lapsed'],
    ['in its margin', facts(LEASE * 1.5 - 1), 'lapsed'],
    ['lease and margin over', facts(LEASE * 1.5), 'dead'],
    ['long over', facts(LEASE * 100), 'dead'],
    ['over, but nobody can take a renewal now', facts(LEASE * 100, { lastBeatMs: NOW - 5_001 }), 'unattended'],
    ['over, after a short silence of ours', facts(LEASE * 100, { lastBeatMs: NOW - 5_000 }), 'dead'],
    ['over, but the clock went back', facts(LEASE * 100, { lastBeatMs: NOW + 60_000 }), 'unattended'],
    ['over, but we were away until just now', facts(LEASE * 100, { gaps: [gap(90_000, 1_000)] }), 'unattended'],
    ['over, and we have been back for lease and margin', facts(LEASE * 100, { gaps: [gap(90_000, 45_000)] }), 'dead'],
    ['over, and away for a moment', facts(LEASE * 2, { gaps: [gap(10_000, 5_000)] }), 'dead'],
    [
      'over, and away often, the last time just now',
      facts(LEASE * 9, { gaps: [gap(90_000, 80_000), gap(20_000, 9_000)] }),
      'unattended',
    ],
    ['in its margin, with a gap', facts(LEASE * 1.2, { gaps: [gap(30_000, 20_000)] }), 'lapsed'],
    ['over, and the clock was set back meanwhile', facts(LEASE * 2, { gaps: [gap(-10_000, 20_000)] }), 'unattended'],
  ] as const)('%s', (_, given, standing) => {
    expect(leaseStanding(given)).toBe(standing);
  });

  test('what the control plane can judge it can also see the gaps of', () => {
    for (const beatMs of [1, 100, 1_000, 7_777])
      expect(shortestGapMs(beatMs)).toBeLessThanOrEqual(tolerableGapMs(shortestLeaseMs(beatMs)));
  });

  test('the margin covers the watchdog’s grace and a jump of the clock that looks like a tolerable gap', () => {
    for (const leaseMs of [1_500, 15_000, LEASE, 3_600_000])
      expect(watchdogGraceMs(leaseMs) + tolerableGapMs(leaseMs)).toBeLessThan(marginMs(leaseMs));
  });
});

/**
 * A sled and a control plane in true time, in milliseconds: renewals are sent, may arrive late or twice or never, and their
 * answers too; each clock runs at a rate of its own; APIs come and go. The agent may be stuck: then its watchdog acts.
 */
const world = fc.record({
  leaseMs: fc.integer({ min: 15_000, max: 60_000 }),
  /** How much faster than true time each clock runs. */
  sledRate: fc.double({ min: 0.98, max: 1.02, noNaN: true }),
  databaseRate: fc.double({ min: 0.98, max: 1.02, noNaN: true }),
  /** How long a kill takes after the watchdog's grace, in milliseconds. */
  killMs: fc.integer({ min: 0, max: 1_000 }),
  renewals: fc.array(
    fc.record({
      afterMs: fc.integer({ min: 1, max: 20_000 }),
      requestDelayMs: fc.integer({ min: 0, max: 40_000 }),
      lost: fc.boolean(),
      answerDelayMs: fc.integer({ min: 0, max: 40_000 }),
      answerLost: fc.boolean(),
    }),
    { minLength: 1, maxLength: 30 },
  ),
  /** When no API is there. */
  outages: fc.array(
    fc.record({ atMs: fc.integer({ min: 0, max: 400_000 }), forMs: fc.integer({ min: 1, max: 120_000 }) }),
    { maxLength: 3 },
  ),
});

test('in no world is a sled declared dead before its guests are off', () => {
  fc.assert(
    fc.property(world, ({ leaseMs, sledRate, databaseRate, killMs, renewals, outages }) => {
      const outageAt = (t: number) => outages.filter(({ atMs, forMs }) => t >= atMs && t < atMs + forMs);
      const clock = (at: number) => at * databaseRate;
      let sentAt = 0;
      const received: { sentAt: number; at: number; answeredAt: number }[] = [];
      for (const one of renewals) {
        sentAt += one.afterMs;
        const at = sentAt + one.requestDelayMs;
        if (one.lost || outageAt(at).length > 0) continue;
        received.push({ sentAt, at, answeredAt: one.answerLost ? Number.POSITIVE_INFINITY : at + one.answerDelayMs });
      }
      for (let t = 0; t < 700_000; t += 500) {
        const known = received.filter(({ at }) => at <= t);
        if (known.length === 0) continue;
        const renewedMs = clock(Math.max(...known.map(({ at }) => at)));
        const standing = leaseStanding({
          nowMs: clock(t),
          renewedMs,
          leaseMs,
          lastBeatMs: clock(Math.min(t, ...outageAt(t).map(({ atMs }) => atMs))),
          gaps: outages
            .filter(({ atMs, forMs }) => atMs + forMs <= t && clock(atMs + forMs) > renewedMs)
            .map(({ atMs, forMs }) => ({ beganMs: clock(atMs), endedMs: clock(atMs + forMs) })),
        });
        if (standing !== 'dead') continue;
        // A renewal that arrives from here on is refused: those before are all that any guest runs on.
        for (const { sentAt: sent, answeredAt } of known) {
          const endsAt = sent + leaseMs / sledRate;
          if (answeredAt < endsAt) expect(endsAt + watchdogGraceMs(leaseMs) / sledRate + killMs).toBeLessThanOrEqual(t);
        }
        return;
      }
    }),
    { numRuns: 300 },
  );
});

test('a sled whose every renewal arrives is never declared dead, whenever we are away', () => {
  fc.assert(
    fc.property(
      fc.record({
        leaseMs: fc.integer({ min: 15_000, max: 60_000 }),
        outages: fc.array(
          fc.record({ beganMs: fc.integer({ min: 0, max: 300_000 }), lastsMs: fc.integer({ min: 1, max: 90_000 }) }),
          { maxLength: 4 },
        ),
        lateMs: fc.integer({ min: 0, max: 2_000 }),
      }),
      ({ leaseMs, outages, lateMs }) => {
        const away = (t: number) => outages.find(({ beganMs, lastsMs }) => t >= beganMs && t < beganMs + lastsMs);
        let renewedMs = 0;
        let nextMs = 0;
        for (let t = 0; t < 450_000; t += 250) {
          const outage = away(t);
          if (t >= nextMs && outage === undefined) {
            renewedMs = t;
            nextMs = t + leaseMs / RENEWALS_PER_LEASE;
          } else if (t >= nextMs) nextMs = t + lateMs; // It tries again, soon after each failure.
          const lastBeatMs =
            outage === undefined
              ? t
              : Math.min(
                  ...outages
                    .filter((one) => t >= one.beganMs && t < one.beganMs + one.lastsMs)
                    .map((one) => one.beganMs),
                );
          const standing = leaseStanding({
            nowMs: t,
            renewedMs,
            leaseMs,
            lastBeatMs,
            gaps: outages
              .map(({ beganMs, lastsMs }) => ({ beganMs, endedMs: beganMs + lastsMs }))
              .filter(({ endedMs }) => endedMs <= t && endedMs > renewedMs),
          });
          expect(standing).not.toBe('dead');
        }
      },
    ),
    { numRuns: 200 },
  );
});
