/** How old Temporal's times are: every way in which this machine's clock, and the server's, may be wrong or set. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { ServerAges } from '../../temporal/server-ages.ts';

const MINUTE = 60_000;
const SERVER = Date.UTC(2026, 0, 1);
const OFF = [-600, -2, 0, 2, 600].map((minutes) => minutes * MINUTE);

afterEach(() => {
  vi.useRealTimers();
});

/** An observer whose monotonic clock, and whose server's, are moved by hand. */
function observe({ tells }: { readonly tells: boolean }) {
  const clock = { monotonicMs: 5_000, serverMs: SERVER };
  const ages = new ServerAges(
    async () => (tells ? clock.serverMs : null),
    () => clock.monotonicMs,
  );
  return {
    ages,
    clock,
    pass(ms: number) {
      clock.monotonicMs += ms;
      clock.serverMs += ms;
    },
  };
}

describe.each(OFF)('this machine is %d ms off', (offMs) => {
  test.each([true, false])('the server tells its time: %s', async (tells) => {
    vi.useFakeTimers({ toFake: ['Date'], now: SERVER + offMs });
    const { ages, clock, pass } = observe({ tells });
    await ages.settle();
    const polls = new Map([
      ['living', clock.serverMs - 1_000],
      ['dead', clock.serverMs - 4 * MINUTE],
    ]);
    const first = ages.agesOf('a queue', polls);
    expect(first.get('living')).toBe(tells ? 1_000 : 0);
    expect(first.get('dead')).toBe(tells ? 4 * MINUTE : 4 * MINUTE - 1_000);
    // Its polls go on; those of one that has just died don't.
    polls.set('dies', clock.serverMs);
    for (let look = 0; look < 10; look += 1) {
      pass(10_000);
      vi.setSystemTime(SERVER + offMs * (look % 2));
      polls.set('living', clock.serverMs - 500);
      const now = ages.agesOf('a queue', polls);
      expect(now.get('living')).toBeLessThanOrEqual(10_000);
      expect(now.get('dead')).toBeGreaterThan(4 * MINUTE);
      expect(now.get('dies')).toBeGreaterThanOrEqual(look * 10_000);
    }
  });

  test('the server’s own clock is set while somebody looks', async () => {
    const { ages, clock, pass } = observe({ tells: true });
    await ages.settle();
    ages.agesOf('a queue', new Map([['living', clock.serverMs]]));
    clock.serverMs += offMs;
    for (let look = 0; look < 5; look += 1) {
      pass(10_000);
      const now = ages.agesOf('a queue', new Map([['living', clock.serverMs]]));
      expect(now.get('living')).toBeLessThanOrEqual(10_000);
    }
    pass(3 * MINUTE);
    const dead = ages.agesOf('a queue', new Map([['living', clock.serverMs - 3 * MINUTE]]));
    expect(dead.get('living')).toBeGreaterThanOrEqual(3 * MINUTE);
  });
});

test('the server is asked for its time once, and no more once a group was seen', async () => {
  let asked = 0;
  const ages = new ServerAges(async () => {
    asked += 1;
    return SERVER;
  });
  await ages.settle();
  await ages.settle();
  expect(asked).toBe(1);
  const mute = new ServerAges(async () => {
    asked += 1;
    return null;
  });
  await mute.settle();
  mute.agesOf('a queue', new Map());
  await mute.settle();
  expect(asked).toBe(2);
});
