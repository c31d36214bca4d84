/** A guest that runs goes only where its CPU is offered, by every way in which one is moved; one that starts gets its sled's. */
import { randomUUID } from 'node:crypto';
import { MockActivityEnvironment } from '@temporalio/testing';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { createDrainActivities } from '../../activities/drain.ts';
import { explainNoSled, pickSled } from '../../db/queries/pick-sled.ts';
import { readClaim } from '../../db/transactions/claim-start.ts';
import { recordSledAnswer } from '../../db/transactions/record-sled-answer.ts';
import { Refusal } from '../../model/refusal.ts';
import { GIBIBYTE, startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

let database: TestDatabase;
let project: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());
beforeEach(async () => {
  await database.empty();
  project = await database.project();
});

async function sledOf(models: readonly string[] | null, describes = true): Promise<string> {
  const id = await database.sled();
  const agent = { agent_id: randomUUID(), trouble: [], ...(models === null ? {} : { cpu_models: [...models] }) };
  await recordSledAnswer(database.db, { id }, describes ? agent : null);
  return id;
}
const cpuOf = async (vmmId: string) => {
  const { rows } = await database.db.execute(sql`SELECT cpu_model FROM vmm WHERE id = ${vmmId}`);
  return rows[0]?.cpu_model;
};
async function outcome(call: Promise<unknown>): Promise<'done' | number | string> {
  try {
    await call;
    return 'done';
  } catch (error) {
    if (error instanceof Refusal) return error.message;
    throw error;
  }
}

/** What a sled offers, in the order in which its agent says it. `silent`: its agent doesn't know the question. */
const OFFERS = {
  silent: { models: null, describes: false },
  untold: { models: null, describes: true },
  none: { models: [], describes: true },
  old: { models: ['Nehalem-v1'], describes: true },
  new: { models: ['EPYC-v1', 'Nehalem-v1', 'host/b'], describes: true },
  'a host': { models: ['host/a', 'Nehalem-v1'], describes: true },
  'another host': { models: ['host/b', 'Nehalem-v1'], describes: true },
} as const;
type Offer = keyof typeof OFFERS;
const ALL = Object.keys(OFFERS) as Offer[];

for (const from of ALL) {
  test.each(ALL)(`a guest of a sled that offers ${from}, and one that offers %s`, async (to) => {
    const here = await sledOf(OFFERS[from].models, OFFERS[from].describes);
    const id = await database.instance(project);
    const claim = await database.start(id);
    // What starts gets what its sled says first, and the sled is told.
    const cpuModel = OFFERS[from].models?.[0] ?? null;
    expect(claim.cpuModel ?? null).toBe(cpuModel);
    expect(await cpuOf(claim.vmmId)).toBe(cpuModel);
    expect(await readClaim(database.db, { ...claim, operationId: claim.vmmId })).toMatchObject({ cpuModel });
    await database.runs(id);

    const there = await sledOf(OFFERS[to].models, OFFERS[to].describes);
    const offered: readonly string[] | null = OFFERS[to].models;
    const fits = cpuModel === null || offered === null || offered.includes(cpuModel);
    const request = { instanceId: id, ncpus: 1, memoryBytes: GIBIBYTE, cpuModel, excludeSledIds: [here] };
    expect((await pickSled(database.db, request))?.id ?? null).toBe(fits ? there : null);
    const { planMove } = createDrainActivities({ db: database.db });
    const move = { instanceId: id, sledId: here, avoidSledIds: [], waitMs: 0 };
    const plan = await new MockActivityEnvironment().run(planMove, move);
    expect(plan).toMatchObject(fits ? { do: 'move', to: { id: there } } : { do: 'no-place' });
    const said = await outcome(database.migrate(id, there));
    if (fits) {
      expect(said).toBe('done');
      // It goes on with the CPU that it has, whatever a guest gets there that starts.
      const { rows } = await database.db.execute(sql`SELECT target_vmm_id FROM instance WHERE id = ${id}`);
      expect(await cpuOf(String(rows[0]?.target_vmm_id))).toBe(cpuModel);
      return;
    }
    expect(said).toContain(`does not offer the CPU model ${cpuModel}`);
    expect(await explainNoSled(database.db, request)).toContain(`offers the CPU model ${cpuModel}`);
    expect(plan).toMatchObject({ reason: expect.stringContaining(String(cpuModel)) });
  });
}

test('a start goes anywhere, whatever its guest ran with before', async () => {
  const here = await sledOf(['host/a']);
  const id = await database.instance(project);
  const first = await database.start(id);
  expect(first.cpuModel).toBe('host/a');
  await database.db.execute(sql`UPDATE sled SET policy = 'no_provision' WHERE id = ${here}`);
  await sledOf(['EPYC-v1']);
  const other = await database.instance(project);
  expect((await database.start(other)).cpuModel).toBe('EPYC-v1');
});

test('what an agent offers is forgotten when another one that does not say has come to its place', async () => {
  const id = await sledOf(['Nehalem-v1']);
  const models = async () =>
    (await database.db.execute(sql`SELECT cpu_models FROM sled WHERE id = ${id}`)).rows[0]?.cpu_models;
  expect(await models()).toEqual(['Nehalem-v1']);
  // An answer without a description says nothing of it.
  await recordSledAnswer(database.db, { id }, undefined);
  expect(await models()).toEqual(['Nehalem-v1']);
  await recordSledAnswer(database.db, { id }, null);
  expect(await models()).toBeNull();
});
