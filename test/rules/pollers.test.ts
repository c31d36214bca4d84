/** Who takes the work: every mix of builds that get it and builds that poll. */
import { describe, expect, test } from 'vitest';
import {
  describeUnserved,
  foreignPollers,
  type PolledQueue,
  queuesWithout,
  unservedQueues,
} from '../../temporal/pollers.ts';

const BUILDS = [null, 'one', 'two'] as const;
const poller = (buildId: string | null, identity = 'a') => ({ identity, buildId, lastPoll: new Date() });
const queue = (
  currentBuild: string | null,
  rampingBuild: string | null,
  polling: readonly (string | null)[],
): PolledQueue => ({
  queue: 'mooring',
  type: 'workflow',
  pollers: polling.map((build) => poller(build)),
  currentBuild,
  rampingBuild,
});
const SUBSETS = [[], [null], ['one'], ['two'], [null, 'one'], ['one', 'two'], [null, 'one', 'two']];

describe.each(BUILDS)('build %s gets new work', (current) => {
  describe.each([null, 'two'])('build %s gets a part', (ramping) => {
    test.each(SUBSETS.map((polling) => ({ polling })))('$polling poll', ({ polling }) => {
      const missing = unservedQueues([queue(current, ramping, polling)]).map(({ buildId }) => buildId);
      const wanted = [current, ...(ramping === null ? [] : [ramping])];
      expect(missing).toEqual(wanted.filter((build) => !polling.includes(build)));
      for (const unserved of unservedQueues([queue(current, ramping, polling)])) {
        const said = describeUnserved(unserved);
        expect(said).toContain(unserved.buildId ?? 'no build is current');
        // What is advised is a build that polls.
        const [, advised] = /promote (\w+)/.exec(said) ?? [];
        if (advised !== undefined) expect(polling).toContain(advised);
      }
    });
  });
});

test('a build is promoted only if it polls every queue', () => {
  const both = (first: readonly string[], second: readonly string[]) => [
    queue('one', null, first),
    queue('one', null, second),
  ];
  expect(queuesWithout(both(['two'], ['two']), 'two')).toHaveLength(0);
  expect(queuesWithout(both(['two'], ['one']), 'two')).toHaveLength(1);
  expect(queuesWithout(both(['one'], []), 'two')).toHaveLength(2);
});

test('a worker of another database is told by its mark; who has none is not judged', () => {
  const polled = (...identities: string[]): PolledQueue[] => [
    { ...queue('one', null, []), pollers: identities.map((identity) => poller('one', identity)) },
  ];
  const mine = { mark: 'aaaaaaaa' };
  expect(foreignPollers(polled('1@host/db-aaaaaaaa', '2@host/db-aaaaaaaa'), mine)).toEqual([]);
  expect(foreignPollers(polled('1@host/db-aaaaaaaa', '2@host/db-bbbbbbbb', '2@host/db-bbbbbbbb'), mine)).toEqual([
    '2@host/db-bbbbbbbb',
  ]);
  expect(foreignPollers(polled('3@host'), mine)).toEqual([]);
  expect(foreignPollers(polled('2@host/db-bbbbbbbb'), { mark: null })).toEqual([]);
});
