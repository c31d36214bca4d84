import { eq, sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readInstance } from '../../db/queries/read-instance.ts';
import { operation } from '../../db/schema.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState, type MigrationState, type OperationKind, type WireVmmState } from '../../model/states.ts';
import { GIBIBYTE, startTestDatabase, type TestDatabase } from '../support/placement-database.ts';
import { unwindError } from '../support/saga-steps.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());

const ACTORS = 6;
const STEPS = 80;

/** A pseudo-random number generator, so that a failure names the seed that brings it back. Source: mulberry32. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

test('starts, migrations, reports, unwinds, stops and updates at once: in every committed state the groups, the sums and the network hold', async () => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  const draw = random(seed);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(draw() * from.length)] as T;
  await database.empty();
  const project = await database.project();
  const sleds: string[] = [];
  for (let n = 0; n < 5; n++) sleds.push(await database.sled({ threads: 4, memoryBytes: 64 * GIBIBYTE }));
  const instances: string[] = [];
  for (let n = 0; n < 12; n++) instances.push(await database.instance(project));
  await database.group(project, 'anti_affinity', 'fail', instances.slice(0, 4));
  await database.group(project, 'affinity', 'fail', instances.slice(4, 7));
  await database.group(project, 'anti_affinity', 'allow', instances.slice(6, 12));
  await database.group(project, 'anti_affinity', 'fail', [instances[0] ?? '', instances[7] ?? '']);

  const report = async (
    vmmId: string,
    state: WireVmmState,
    sides: { in?: MigrationState; out?: MigrationState } = {},
  ) => {
    const { rows } = await database.db.execute(sql`
      SELECT vmm.state_generation::int AS gen, migration.id AS migration, source_generation::int AS out_gen, target_generation::int AS in_gen
      FROM vmm LEFT JOIN migration ON ${vmmId}::uuid IN (source_vmm_id, target_vmm_id) AND vmm.id = ${vmmId}
      WHERE vmm.id = ${vmmId} ORDER BY migration.time_created DESC LIMIT 1`);
    const row = rows[0];
    if (row === undefined) return;
    const time_updated = new Date().toISOString();
    const side = (state: MigrationState | undefined, gen: unknown) =>
      state === undefined || row.migration === null
        ? null
        : { migration_id: String(row.migration), state, gen: Number(gen) + 1, time_updated };
    await applyReport(database.db, vmmId, {
      vmm_state: { state, gen: Number(row.gen) + 1, time_updated },
      migration_in: side(sides.in, row.in_gen),
      migration_out: side(sides.out, row.out_gen),
    });
  };
  const unwind = async (kind: OperationKind, instanceId: string, vmmId: string) => {
    const [claimed] = await database.db.select().from(operation).where(eq(operation.vmmId, vmmId));
    const attempt = { kind, instanceId, vmmId, operationId: claimed?.id ?? '', workflowId: 'unwind' };
    const { spared } = await beginUnwind(database.db, { ...attempt, spareRunning: true, refused: true });
    if (spared) return;
    await finishUnwind(database.db, {
      ...attempt,
      confirmed: draw() < 0.7,
      neverCommanded: true,
      error: unwindError(),
    });
  };

  const update = async (id: string) => {
    const committed = await commitUpdate(database.db, id);
    return committed?.rounds[0]?.case ?? committed?.case ?? 'none';
  };

  const act = async (): Promise<string> => {
    const id = pick(instances);
    const record = await readInstance(database.db, id);
    const { active, target, migration } = record ?? {};
    const choice = draw();
    if (choice < 0.2) return update(id);
    if (choice < 0.23) return recordStop(database.db, id).then(() => 'stop');
    if (!active || active.state === 'saga_unwound') return database.start(id).then(() => 'started');
    if (isGoneVmmState(active.state)) return update(id);
    if (active.state === 'creating') {
      if (choice < 0.4) return unwind('start', id, active.id).then(() => 'unwound');
      return report(active.id, choice < 0.9 ? 'running' : 'failed').then(() => 'reported');
    }
    if (!target || !migration || isGoneVmmState(target.state)) {
      if (choice < 0.75) return database.migrate(id, pick(sleds)).then(() => 'migrated');
      return report(active.id, choice < 0.9 ? 'destroyed' : 'failed').then(() => 'reported');
    }
    const outcome = draw();
    if (outcome < 0.2) return unwind('migrate', id, target.id).then(() => 'unwound');
    if (outcome < 0.45) await report(active.id, 'stopping', { out: 'completed' });
    else if (outcome < 0.75) await report(target.id, 'running', { in: 'completed' });
    else if (outcome < 0.9) await report(target.id, 'failed', { in: 'failed' });
    else await report(active.id, 'running', { out: 'failed' });
    return 'reported';
  };

  let busy = true;
  const broken: unknown[] = [];
  let looks = 0;
  const watcher = (async () => {
    while (busy) {
      broken.push(...(await database.broken()));
      looks += 1;
    }
  })();
  const came = new Map<string, number>();
  const count = (what: string) => came.set(what, (came.get(what) ?? 0) + 1);
  await Promise.all(
    Array.from({ length: ACTORS }, async () => {
      for (let step = 0; step < STEPS; step++) {
        try {
          count(await act());
        } catch (error) {
          // A start that is a no-op, or a request that is refused; anything else is a fault.
          if (error instanceof Refusal) count(`refused with ${error.status}`);
          else if (error instanceof Error && /is started already/.test(error.message)) count('no-op');
          else throw new Error(`seed ${seed}: ${error}`, { cause: error });
        }
      }
    }),
  ).finally(() => {
    busy = false;
    return watcher;
  });
  expect(broken, `seed ${seed}`).toEqual([]);
  expect(looks).toBeGreaterThan(20);
  // It was no empty exercise.
  for (const what of ['started', 'migrated', 'unwound', 'moved', 'refused with 507'])
    expect(came.get(what) ?? 0, `${what}, seed ${seed}, of ${JSON.stringify([...came])}`).toBeGreaterThan(0);
});
