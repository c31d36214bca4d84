/** Names are looked up few at a time, and each once: a name service that hangs takes no more of the system's threads. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { nameLookups } from '../../platform/host/name-lookups.ts';

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
