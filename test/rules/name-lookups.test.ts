/** Names are looked up few at a time, and each once: a name service that hangs takes no more of the system's threads. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { nameLookups } from '../../platform/host/name-lookups.ts';
import { eventually } from '../support/wait.ts';

type Asked = { readonly hostname: string; readonly answer: (address: string) => void };

/** A system whose answers come when a test says so. */
function heldSystem() {
  const asked: Asked[] = [];
  const lookUp = (hostname: string, _: unknown, callback: (error: null, address: string, family: number) => void) => {
    asked.push({ hostname, answer: (address) => callback(null, address, 4) });
  };
  return { asked, lookUp: lookUp as never };
}

test('any names, asked for in any order: each caller gets the answer to its own, and never are more under way than may be', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(5), { maxLength: 30 }), fc.integer({ min: 1, max: 3 }), (names, atOnce) => {
      const { asked, lookUp } = heldSystem();
      const lookup = nameLookups({ atOnce, waitMs: 60_000, lookUp });
      const heard: string[] = [];
      for (const name of names) lookup(`host-${name}`, {}, (_, address) => heard.push(`host-${name}=${address}`));
      let answered = 0;
      while (answered < asked.length) {
        expect(asked.length - answered).toBeLessThanOrEqual(atOnce);
        const { hostname, answer } = asked[answered++] as Asked;
        answer(`address of ${hostname}`);
      }
      expect(asked).toHaveLength(new Set(names).size);
      expect(heard.sort()).toEqual(names.map((name) => `host-${name}=address of host-${name}`).sort());
    }),
  );
});

test('who waits for its turn in vain gets an error, and does not take a turn later', async () => {
  const { asked, lookUp } = heldSystem();
  const lookup = nameLookups({ atOnce: 1, waitMs: 5, lookUp });
  lookup('hangs', {}, () => {});
  const failed = await new Promise<NodeJS.ErrnoException | null>((resolve) => lookup('late', {}, resolve));
  expect(failed).toMatchObject({ code: 'EAI_AGAIN', message: expect.stringContaining('"late"') });
  asked[0]?.answer('10.0.0.1');
  expect(asked.map(({ hostname }) => hostname)).toEqual(['hangs']);
  const again = new Promise((resolve) => lookup('late', {}, (_, address) => resolve(address)));
  asked[1]?.answer('10.0.0.2');
  expect(await again).toBe('10.0.0.2');
});

/** A system in which each name is found, is nowhere, or hangs until a test lets it go. */
function systemOf(kinds: Record<string, 'found' | 'nowhere' | 'fails' | 'hangs'>) {
  const held = new Map<string, () => void>();
  let mostHeld = 0;
  const counts = new Map<string, number>();
  const lookUp = (hostname: string, _: unknown, callback: (...outcome: unknown[]) => void) => {
    const number = (counts.get(hostname) ?? 0) + 1;
    counts.set(hostname, number);
    const fail = (code: string) => callback(Object.assign(new Error(code), { code }), '');
    switch (kinds[hostname]) {
      case 'hangs':
        held.set(hostname, () => {
          held.delete(hostname);
          fail('EAI_AGAIN');
        });
        mostHeld = Math.max(mostHeld, held.size);
        return;
      case 'found':
        return void setImmediate(() => callback(null, `${hostname}#${number}`, 4));
      default:
        return void setImmediate(() => fail(kinds[hostname] === 'nowhere' ? 'ENOTFOUND' : 'EAI_AGAIN'));
    }
  };
  return { kinds, held, counts, lookUp: lookUp as never, mostHeld: () => mostHeld };
}

const asking = (lookup: ReturnType<typeof nameLookups>) => (hostname: string) =>
  new Promise<string>((resolve) =>
    lookup(hostname, {}, (error, address) => resolve(error === null ? String(address) : String(error.code))),
  );

test('any number of names that hang: others are looked up as ever, those that were found before are where they were', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 8 }),
      fc.integer({ min: 0, max: 8 }),
      fc.integer({ min: 2, max: 4 }),
      fc.shuffledSubarray(['found', 'new'] as const, { minLength: 2 }),
      async (hanging, known, atOnce, order) => {
        const system = systemOf({});
        const lookup = asking(nameLookups({ atOnce, waitMs: 5_000, hangsAfterMs: 2, lookUp: system.lookUp }));
        const bad = Array.from({ length: hanging }, (_, index) => `bad-${index}`);
        const good = Array.from({ length: known }, (_, index) => `good-${index}`);
        for (const name of [...bad, ...good]) system.kinds[name] = 'found';
        for (const name of [...bad, ...good]) expect(await lookup(name)).toMatch(new RegExp(`^${name}#`));
        for (const name of bad) system.kinds[name] = 'hangs';
        // The first time nobody can know; their callers hear of the last address in any case.
        const letGo = () => {
          for (const answer of [...system.held.values()]) answer();
        };
        const askBad = async () =>
          expect(await Promise.all(bad.map(lookup))).toEqual(bad.map((name) => expect.stringMatching(`^${name}#`)));
        await askBad();
        await askBad();
        await eventually(() => {
          letGo();
          return bad.every((name) => (system.counts.get(name) ?? 0) >= 2) && system.held.size === 0;
        }, 'some never had a turn');
        await askBad();
        expect(system.held.size).toBeLessThan(atOnce);
        const others = { found: good, new: ['new-1', 'new-2'] };
        for (const name of others.new) system.kinds[name] = 'found';
        for (const kind of order)
          for (const name of others[kind]) expect(await lookup(name)).toMatch(new RegExp(`^${name}#`));
        expect(system.mostHeld()).toBeLessThanOrEqual(atOnce);
        letGo();
      },
    ),
    { numRuns: 25 },
  );
});

test.each([
  ['hangs', 'name#1'],
  ['fails', 'name#1'],
  ['nowhere', 'ENOTFOUND'],
] as const)('a name that was found, and then %s, is %s', async (kind, heard) => {
  const system = systemOf({ name: 'found' });
  const lookup = asking(nameLookups({ hangsAfterMs: 2, lookUp: system.lookUp }));
  expect(await lookup('name')).toBe('name#1');
  system.kinds.name = kind;
  expect(await lookup('name')).toBe(heard);
  expect(await lookup('name')).toBe(heard);
  system.kinds.name = 'found';
  for (const letGo of system.held.values()) letGo();
  await eventually(async () => /#[^1]/.test(await lookup('name')), 'it was never looked up again');
  system.kinds.name = 'nowhere';
  await eventually(async () => (await lookup('name')) === 'ENOTFOUND', 'it was still somewhere');
  system.kinds.name = 'fails';
  expect(await lookup('name')).toBe('EAI_AGAIN');
});
