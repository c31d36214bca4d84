/** Who takes the work: every mix of builds that get it and builds that poll. */
import { describe, expect, test } from 'vitest';
import {
  describeUnserved,
  foreignPollers,
  type PolledQueue,
  queuesWithout,
  readRouting,
  unservedQueues,
} from '../../temporal/pollers.ts';

const BUILDS = [null, 'one', 'two'] as const;
const poller = (buildId: string | null, identity = 'a') => ({ identity, buildId, lastPoll: new Date() });
const queue = (
  currentBuild: string | null,
  rampingBuild: string | null | undefined,
  polling: readonly (string | null)[],
): PolledQueue => ({
  queue: 'mooring',
  type: 'workflow',
  pollers: polling.map((build) => poller(build)),
  routing: {
    deployment: 'mooring-mine',
    currentBuild,
    ramp: rampingBuild === undefined ? null : { buildId: rampingBuild, percentage: 10 },
  },
});
const SUBSETS = [[], [null], ['one'], ['two'], [null, 'one'], ['one', 'two'], [null, 'one', 'two']];

describe.each(BUILDS)('build %s gets new work', (current) => {
  describe.each([undefined, null, 'two', 'one of deployment mooring-other'])('build %s gets a part', (ramping) => {
    test.each(SUBSETS.map((polling) => ({ polling })))('$polling poll', ({ polling }) => {
      const missing = unservedQueues([queue(current, ramping, polling)]).map(({ buildId }) => buildId);
      const wanted = [current, ...(ramping === undefined ? [] : [ramping])];
      expect(missing).toEqual(wanted.filter((build) => !polling.includes(build)));
      for (const unserved of unservedQueues([queue(current, ramping, polling)])) {
        const said = describeUnserved(unserved);
        const nobody = unserved.rampPercentage === null ? 'no build is current' : 'workers without a version get 10%';
        expect(said).toContain(unserved.buildId ?? nobody);
        // What is advised is a build that polls.
        const [, advised] = /promote (\w+)/.exec(said) ?? [];
        if (advised !== undefined) expect(polling).toContain(advised);
      }
    });
  });
});

describe('as the server says it', () => {
  const MINE = 'mooring-mine';
  const VERSIONS = [
    { version: undefined, name: null },
    { version: { deploymentName: MINE, buildId: 'one' }, name: 'one' },
    { version: { deploymentName: 'mooring-other', buildId: 'one' }, name: 'one of deployment mooring-other' },
  ];
  describe.each(VERSIONS)('$name is current', ({ version: current, name: currentBuild }) => {
    test.each(VERSIONS.flatMap((ramping) => [0, 1, 100].map((percentage) => ({ ...ramping, percentage }))))(
      '$name gets $percentage%',
      ({ version, name, percentage }) => {
        const routing = readRouting(MINE, {
          currentDeploymentVersion: current ?? null,
          rampingDeploymentVersion: version ?? null,
          rampingVersionPercentage: percentage,
        });
        const ramp = percentage === 0 ? null : { buildId: name, percentage };
        expect(routing).toEqual({ deployment: MINE, currentBuild, ramp });
        // A worker of one's own build is nobody to whom else work goes.
        const polled = { ...queue(null, undefined, ['one']), routing };
        expect(unservedQueues([polled]).map(({ buildId }) => buildId)).toEqual(
          [currentBuild, ...(ramp === null ? [] : [name])].filter((build) => build !== 'one'),
        );
      },
    );
  });
});

test('a build is promoted only if it polls every queue', () => {
  const both = (first: readonly string[], second: readonly string[]) => [
    queue('one', undefined, first),
    queue('one', undefined, second),
  ];
  expect(queuesWithout(both(['two'], ['two']), 'two')).toHaveLength(0);
  expect(queuesWithout(both(['two'], ['one']), 'two')).toHaveLength(1);
  expect(queuesWithout(both(['one'], []), 'two')).toHaveLength(2);
});

test('a worker of another database is told by its mark; who has none is not judged', () => {
  const polled = (...identities: string[]): PolledQueue[] => [
    { ...queue('one', undefined, []), pollers: identities.map((identity) => poller('one', identity)) },
  ];
  const mine = { mark: 'aaaaaaaa' };
  expect(foreignPollers(polled('1@host/db-aaaaaaaa', '2@host/db-aaaaaaaa'), mine)).toEqual([]);
  expect(foreignPollers(polled('1@host/db-aaaaaaaa', '2@host/db-bbbbbbbb', '2@host/db-bbbbbbbb'), mine)).toEqual([
    '2@host/db-bbbbbbbb',
  ]);
  expect(foreignPollers(polled('3@host'), mine)).toEqual([]);
  expect(foreignPollers(polled('2@host/db-bbbbbbbb'), { mark: null })).toEqual([]);
});
