import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { pickSled } from '../../db/queries/pick-sled.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { Refusal } from '../../model/refusal.ts';
import { AFFINITY_KINDS, AFFINITY_POLICIES } from '../../model/states.ts';
import { GIBIBYTE, startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());

const scene = fc.record({
  sleds: fc.array(fc.record({ threads: fc.integer({ min: 1, max: 6 }), gibibytes: fc.integer({ min: 1, max: 6 }) }), {
    minLength: 1,
    maxLength: 5,
  }),
  instances: fc.array(fc.record({ ncpus: fc.integer({ min: 1, max: 3 }), gibibytes: fc.integer({ min: 1, max: 3 }) }), {
    minLength: 2,
    maxLength: 14,
  }),
  groups: fc.array(
    fc.record({
      kind: fc.constantFrom(...AFFINITY_KINDS),
      policy: fc.constantFrom(...AFFINITY_POLICIES),
      members: fc.uniqueArray(fc.nat(13), { minLength: 2, maxLength: 8 }),
    }),
    { maxLength: 4 },
  ),
});

test('whatever the sleds, sizes and groups: starts at once break no group with fail and no capacity, and none is refused that fits', async () => {
  await fc.assert(
    fc.asyncProperty(scene, async ({ sleds, instances, groups }) => {
      await database.empty();
      const project = await database.project();
      for (const { threads, gibibytes } of sleds) await database.sled({ threads, memoryBytes: gibibytes * GIBIBYTE });
      const ids: string[] = [];
      for (const { ncpus, gibibytes } of instances)
        ids.push(await database.instance(project, { ncpus, memoryBytes: gibibytes * GIBIBYTE }));
      for (const { kind, policy, members } of groups)
        await database.group(project, kind, policy, [...new Set(members.flatMap((index) => ids[index] ?? []))]);

      const outcomes = await Promise.allSettled(ids.map((id) => database.start(id)));

      expect(await database.broken()).toEqual([]);
      for (const [index, outcome] of outcomes.entries()) {
        const id = ids[index] ?? '';
        if (outcome.status === 'fulfilled') {
          expect(await database.sledsOf(id)).toEqual([outcome.value.sledId]);
          continue;
        }
        const { reason } = outcome;
        if (!(reason instanceof Refusal)) throw reason;
        expect([reason.status, reason.message]).toEqual([507, expect.stringMatching(/no sled has room|group ".+" /)]);
        expect(await database.sledsOf(id)).toEqual([]);
        const { instance } = (await readInstance(database.db, id)) ?? {};
        expect(instance).toMatchObject({
          state: 'no_vmm',
          activeVmmId: null,
          stateGeneration: 1,
          intendedState: 'stopped',
        });
        // Starts only take places: what had none then has none now.
        const request = { instanceId: id, ncpus: instance?.ncpus ?? 0, memoryBytes: instance?.memoryBytes ?? 0 };
        expect(await pickSled(database.db, request)).toBeNull();
      }
    }),
    { numRuns: 60 },
  );
});

test('thirty members that must be apart, on thirty sleds, started at once: all start', async () => {
  await database.empty();
  const project = await database.project();
  const ids: string[] = [];
  for (let n = 0; n < 30; n++) {
    await database.sled();
    ids.push(await database.instance(project));
  }
  await database.group(project, 'anti_affinity', 'fail', ids);
  const claims = await Promise.all(ids.map((id) => database.start(id)));
  expect(new Set(claims.map((claim) => claim.sledId)).size).toBe(30);
  expect(await database.broken()).toEqual([]);
});
