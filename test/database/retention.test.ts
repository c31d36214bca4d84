/** What is over is kept as long as the operator says, then reaped: exactly what is due, in batches that leave a whole world. */
import { randomUUID } from 'node:crypto';
import { type SQL, sql } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/node-postgres';
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { EXPIRING, reapExpired } from '../../activities/reaper.ts';
import { checkInvariants } from '../../db/invariants/check-invariants.ts';
import { findOpenOperations } from '../../db/queries/find-open-operations.ts';
import { findOwningInstances } from '../../db/queries/find-owning-instances.ts';
import { findRestartCandidates } from '../../db/queries/find-restart-candidates.ts';
import { findUpdateCandidates } from '../../db/queries/find-update-candidates.ts';
import { listInstances } from '../../db/queries/list-instances.ts';
import { readHistory } from '../../db/queries/read-history.ts';
import { readLastMigration } from '../../db/queries/read-migration.ts';
import { readNetworkChanges } from '../../db/queries/read-network-changes.ts';
import { readPlacedVmms } from '../../db/queries/read-placed-vmms.ts';
import { readSledVmms } from '../../db/queries/read-sled-vmms.ts';
import { readSnapshot } from '../../db/queries/read-snapshot.ts';
import * as schema from '../../db/schema.ts';
import { TABLE_BOUNDS } from '../../db/table-bounds.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { forgetOldKeys } from '../../db/transactions/forget-keys.ts';
import { forgetOldRecords } from '../../db/transactions/reap-audit-log.ts';
import { reapInstances, reapMigrations, reapOperations, reapPastVmms } from '../../db/transactions/reap-expired.ts';
import { MIGRATION_STATES } from '../../model/states.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { newAttempt, startedInstance, unwoundAttempt, vmmReport } from '../support/saga-steps.ts';

const DAY_MS = 24 * 3600 * 1000;
const KEPT_DAYS = 30;
const KEPT_MS = KEPT_DAYS * DAY_MS;

let database: TestDatabase;
let projectId: string;
let sledIds: string[];
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.stop());
beforeEach(async () => {
  await database.clear();
  await database.db.execute(sql`TRUNCATE audit_log, access_token, sled_invite, sled_certificate CASCADE`);
  projectId = await database.addProject();
  sledIds = [await database.addSled({ threads: 4096 }), await database.addSled({ threads: 4096 })];
});

const nothingOpen = { findOpenSagas: async () => [] };
const run = (statement: SQL) => database.db.execute(statement);
const ago = (days: number) => sql`now() - ${days}::float8 * interval '1 day'`;
async function idsOf(table: string): Promise<Set<string>> {
  const result = await run(sql`SELECT id FROM ${sql.identifier(table)}`);
  return new Set(result.rows.map((row) => String(row.id)));
}

// --- A world of rows, planted as it stood, and what of it is due ---

/** How long ago, in days: never at the very border. */
const age = fc.constantFrom<number[]>(1, 29, 31, 400);
const side = fc.constantFrom('pending', 'in_progress', 'completed', 'failed');

const deadVmm = fc.record({
  state: fc.constantFrom('destroyed', 'failed', 'saga_unwound'),
  deleted: age,
});
const operationPlan = fc.record({
  /** `null`: it is open. */
  ended: fc.option(age),
  /** Of which dead VMM it is; none: it was refused. */
  vmm: fc.option(fc.nat(5)),
  key: fc.boolean(),
  /** Its workflow is open in Temporal, whatever is on record. */
  workflowOpen: fc.integer({ min: 0, max: 7 }).map((n) => n === 0),
});
const migrationPlan = fc.record({
  /** Between which: dead VMMs by their number, or the living one. */
  source: fc.oneof(fc.nat(5), fc.constant('living' as const)),
  target: fc.oneof(fc.nat(5), fc.constant('living' as const)),
  sourceState: side,
  targetState: side,
  updated: age,
});
const instancePlan = fc.record({
  deleted: fc.option(age),
  /** What is deleted may still wait for its update. */
  settled: fc.integer({ min: 0, max: 4 }).map((n) => n > 0),
  living: fc.boolean(),
  /** Only where one lives: it is migrating now. */
  migrating: fc.boolean(),
  dead: fc.array(deadVmm, { maxLength: 4 }),
  operations: fc.array(operationPlan, { maxLength: 4 }),
  migrations: fc.array(migrationPlan, { maxLength: 3 }),
  /** A key that came with a call that began nothing yet. */
  looseKey: fc.integer({ min: 0, max: 5 }).map((n) => n === 0),
  networked: fc.boolean(),
});
const projectPlan = fc.record({ deleted: fc.option(age), instances: fc.array(instancePlan, { maxLength: 4 }) });
type ProjectPlan = typeof projectPlan extends fc.Arbitrary<infer Plan> ? Plan : never;
type InstancePlan = ProjectPlan['instances'][number];

interface World {
  /** The ids that are due, by table; whatever else is there stays. */
  readonly due: Record<'project' | 'instance' | 'vmm' | 'migration' | 'operation', Set<string>>;
  readonly openOperationIds: string[];
}

async function plantWorld(plans: readonly ProjectPlan[]): Promise<World> {
  const due: World['due'] = {
    project: new Set(),
    instance: new Set(),
    vmm: new Set(),
    migration: new Set(),
    operation: new Set(),
  };
  const openOperationIds: string[] = [];
  for (const plan of plans) {
    const project = await database.addProject();
    let left = 0;
    for (const each of plan.instances) {
      // A project with instances that aren't deleted can't be deleted.
      const instance = plan.deleted === null ? each : { ...each, deleted: Math.max(each.deleted ?? 0, plan.deleted) };
      if (!(await plantInstance(project, instance, due, openOperationIds))) left += 1;
    }
    if (plan.deleted !== null) {
      await run(sql`UPDATE project SET time_deleted = ${ago(plan.deleted)} WHERE id = ${project}`);
      if (plan.deleted > KEPT_DAYS && left === 0) due.project.add(project);
    }
  }
  await run(sql`TRUNCATE doctor.journal`);
  return { due, openOperationIds };
}

/** Plants an instance with all that it had; returns whether it is due. What is due is decided here, in words of its own. */
async function plantInstance(
  project: string,
  plan: InstancePlan,
  due: World['due'],
  openOperationIds: string[],
): Promise<boolean> {
  const id = await database.addInstance(project);
  const living = plan.living && plan.deleted === null ? await plantVmm(id, 'running', null) : null;
  const dead: { id: string; deleted: number; state: string }[] = [];
  for (const { state, deleted } of plan.dead) dead.push({ id: await plantVmm(id, state, deleted), state, deleted });
  if (living !== null) await incarnate(id, project, living);
  let left = living === null ? 0 : 1;

  /** VMMs that something names that stays. */
  const named = new Set<string>();
  const pairs = new Set<string>();
  for (const planned of plan.migrations) {
    const end = (which: number | 'living') =>
      which === 'living' ? (living === null ? undefined : { id: living, deleted: null }) : dead[which % dead.length];
    const [source, target] = [end(planned.source), end(planned.target)];
    if (source === undefined || target === undefined || source.id === target.id || pairs.has(target.id)) continue;
    // What was unwound never had the guest, and its side is over.
    const unwound = dead.some((vmm) => vmm.id === target.id && vmm.state === 'saga_unwound');
    const targetState = unwound ? 'failed' : planned.targetState;
    pairs.add(target.id);
    const migrationId = randomUUID();
    await run(sql`
      INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id, source_state, target_state, time_created, time_target_updated)
      VALUES (${migrationId}, ${id}, ${source.id}, ${target.id}, ${planned.sourceState}, ${targetState},
        ${ago(planned.updated + 0.1)}, ${ago(planned.updated)})`);
    const old = (vmm: { deleted: number | null }) => vmm.deleted !== null && vmm.deleted > KEPT_DAYS;
    const sourceDone = old(source) || (planned.sourceState !== 'completed' && old(target));
    const targetDone = old(target) || targetState === 'completed';
    if (planned.updated > KEPT_DAYS && sourceDone && targetDone) due.migration.add(migrationId);
    else {
      left += 1;
      named.add(source.id).add(target.id);
    }
  }
  if (living !== null && plan.migrating) await migrateNow(id, living);

  for (const planned of plan.operations) {
    const vmm = planned.vmm === null ? undefined : dead[planned.vmm % dead.length];
    const operationId = randomUUID();
    const succeeded = vmm !== undefined && vmm.state !== 'saga_unwound';
    await run(sql`
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, time_started, time_ended, succeeded, error)
      VALUES (${operationId}, 'start', ${id}, ${vmm?.id ?? null}, ${`instance-start/${id}`}, ${ago((planned.ended ?? 0) + 1)},
        ${planned.ended === null ? null : ago(planned.ended)}, ${planned.ended === null ? null : succeeded},
        ${planned.ended === null || succeeded ? null : '{"status":409}'}::jsonb)`);
    if (planned.key) await plantKey(id, operationId);
    if (planned.workflowOpen) openOperationIds.push(operationId);
    if (planned.ended !== null && planned.ended > KEPT_DAYS && !planned.key && !planned.workflowOpen)
      due.operation.add(operationId);
    else {
      left += 1;
      if (vmm !== undefined && (planned.ended === null || planned.workflowOpen)) named.add(vmm.id);
    }
  }
  if (plan.looseKey) {
    await plantKey(id, null);
    left += 1;
  }
  for (const vmm of dead) {
    if (vmm.deleted > KEPT_DAYS && !named.has(vmm.id)) due.vmm.add(vmm.id);
    else left += 1;
  }
  if (plan.networked && living === null)
    await run(sql`INSERT INTO instance_network (instance_id, generation) VALUES (${id}, 2)`);
  if (plan.deleted === null) return false;
  await run(sql`
    UPDATE instance SET time_deleted = ${ago(plan.deleted)}, intended_state = 'destroyed',
      state = CASE WHEN ${plan.settled} THEN 'destroyed' ELSE state END::instance_state,
      state_generation = state_generation + ${plan.settled ? 1 : 0}::int
    WHERE id = ${id}`);
  if (plan.deleted < KEPT_DAYS || !plan.settled || left > 0) return false;
  due.instance.add(id);
  return true;
}

let nextPort = 20_000;

async function plantVmm(instanceId: string, state: string, deletedDaysAgo: number | null): Promise<string> {
  const id = randomUUID();
  await run(sql`
    INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, unwinding_since, failure_reason, time_created, time_deleted)
    VALUES (${id}, ${instanceId}, ${sledIds[0]}, '10.1.1.1', ${nextPort++}, ${state}::vmm_state,
      ${state === 'saga_unwound' ? sql`now()` : sql`NULL`}, ${state === 'failed' ? 'planted' : null},
      ${ago((deletedDaysAgo ?? 100) + 1)}, ${deletedDaysAgo === null ? null : ago(deletedDaysAgo)})`);
  return id;
}

async function incarnate(id: string, project: string, vmmId: string): Promise<void> {
  await reserve(id, vmmId, 'active');
  await run(sql`INSERT INTO provisioning_charge VALUES (${id}, ${project}, 2, 1024)`);
  await run(sql`
    UPDATE instance SET state = 'vmm', active_vmm_id = ${vmmId}, intended_state = 'running', state_generation = state_generation + 1
    WHERE id = ${id}`);
  await run(sql`
    INSERT INTO instance_network (instance_id, sled_id, vmm_id, ip, port) SELECT instance_id, sled_id, id, ip, port FROM vmm WHERE id = ${vmmId}`);
}

const reserve = (id: string, vmmId: string, kind: string) =>
  run(sql`
    INSERT INTO sled_reservation VALUES (${vmmId}, ${id}, (SELECT sled_id FROM vmm WHERE id = ${vmmId}), 2, 1024, ${kind}::reservation_kind)`);

async function migrateNow(id: string, sourceVmmId: string): Promise<void> {
  const [target, migrationId] = [await plantVmm(id, 'migrating', null), randomUUID()];
  await reserve(id, target, 'target');
  // Under way for as long as can be: what is linked is never due.
  await run(sql`
    INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id, time_created)
    VALUES (${migrationId}, ${id}, ${sourceVmmId}, ${target}, ${ago(400)})`);
  await run(sql`
    UPDATE instance SET target_vmm_id = ${target}, migration_id = ${migrationId}, state_generation = state_generation + 1 WHERE id = ${id}`);
}

const plantKey = (instanceId: string, operationId: string | null) =>
  run(sql`
    INSERT INTO idempotency_key (key, call, request_digest, taken_by, instance_id, operation_id)
    VALUES (${randomUUID()}, 'start', sha256(''), gen_random_uuid(), ${instanceId}, ${operationId})`);

const TABLES = ['project', 'instance', 'vmm', 'migration', 'operation'] as const;

test('any mix of rows and ages: exactly what is due goes, and what must always hold holds after every batch', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(projectPlan, { minLength: 1, maxLength: 3 }),
      fc.integer({ min: 1, max: 5 }),
      async (plans, limit) => {
        await database.clear();
        sledIds = [await database.addSled({ threads: 4096 })];
        const { due, openOperationIds } = await plantWorld(plans);
        const before = new Map<string, Set<string>>();
        for (const table of TABLES) before.set(table, await idsOf(table));
        const staying = (table: (typeof TABLES)[number]) =>
          [...(before.get(table) ?? [])].filter((id) => !due[table].has(id)).sort();
        const request = { keptMs: KEPT_MS, limit, openOperationIds };
        for (const [kind, reapBatch] of EXPIRING) {
          for (;;) {
            const some = await reapBatch(database.db, request);
            expect(some, kind).toBeLessThanOrEqual(limit);
            const { violations } = await checkInvariants(database.db, { atRest: false, journal: 'required' });
            expect(violations.map(({ message }) => message)).toEqual([]);
            for (const table of TABLES) {
              const now = await idsOf(table);
              expect(staying(table).filter((id) => !now.has(id))).toEqual([]);
            }
            if (some < limit) break;
          }
        }
        for (const table of TABLES) expect([...(await idsOf(table))].sort(), table).toEqual(staying(table));
        // Nothing is left for another pass.
        expect(await reapExpired(database.db, { findOpenSagas: async () => openOperationIds }, KEPT_MS, limit)).toEqual(
          {},
        );
      },
    ),
    { numRuns: 20 },
  );
});

test('a migration goes when it is long over and neither VMM needs it: every combination of its VMMs and its sides', async () => {
  const ages = { living: null, recent: 1, old: 31 } as const;
  const kinds = ['living', 'recent', 'old'] as const;
  const cases: { name: string; id: string; goes: boolean }[] = [];
  for (const source of kinds)
    for (const target of kinds)
      for (const sourceState of MIGRATION_STATES)
        for (const targetState of MIGRATION_STATES)
          for (const updated of [1, 31]) {
            const id = randomUUID();
            const instanceId = await database.addInstance(projectId);
            const plant = (kind: (typeof kinds)[number]) =>
              plantVmm(instanceId, kind === 'living' ? 'running' : 'destroyed', ages[kind]);
            await run(sql`
              INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id, source_state, target_state, time_created, time_source_updated)
              VALUES (${id}, ${instanceId}, ${await plant(source)}, ${await plant(target)}, ${sourceState}, ${targetState}, ${ago(40)}, ${ago(updated)})`);
            const bothGone = source === 'old' && target === 'old';
            // The guest has arrived, and where it came from is long gone.
            const arrived = source === 'old' && target !== 'old' && targetState === 'completed';
            // The guest has stayed, and where it was to go is long gone.
            const stayed = source !== 'old' && target === 'old' && sourceState !== 'completed';
            cases.push({
              name: `${source} ${sourceState} to ${target} ${targetState}, updated ${updated} days ago`,
              id,
              goes: updated === 31 && (bothGone || arrived || stayed),
            });
          }
  await reapMigrations(database.db, { keptMs: KEPT_MS, limit: 1_000 });
  const left = await idsOf('migration');
  expect(cases.filter(({ id, goes }) => left.has(id) === goes).map(({ name }) => name)).toEqual([]);
});

test('a pass in the middle of anything: sagas and deletions go on beside a reaper that keeps nothing', async () => {
  const { db } = database;
  let working = true;
  const life = async (unwinds: boolean) => {
    for (let round = 0; round < 6; round++) {
      const id = await database.addInstance(projectId);
      if (unwinds) {
        const attempt = newAttempt('start', id);
        await claimStart(db, { ...attempt, reason: 'user' });
        await unwoundAttempt(db, attempt, true);
        await commitUpdate(db, id);
      }
      const begun = await startedInstance(db, id);
      await applyReport(db, begun.vmmId, vmmReport('destroyed', 4));
      await commitUpdate(db, id);
      await deleteInstance(db, id);
    }
  };
  const lives = Promise.all([life(true), life(false), life(true), life(false)]).finally(() => {
    working = false;
  });
  let instances = 0;
  while (working) instances += (await reapExpired(db, nothingOpen, 0, 3)).oldInstances ?? 0;
  await lives;
  instances += (await reapExpired(db, nothingOpen, 0, 3)).oldInstances ?? 0;
  expect(instances).toBe(24);
  for (const table of ['instance', 'vmm', 'operation'] as const) expect((await idsOf(table)).size, table).toBe(0);
  expect((await checkInvariants(db, { atRest: true, journal: 'required' })).violations).toEqual([]);
});

test('what someone is just writing to is passed over, and waited for by nobody', async () => {
  const { db } = database;
  const [busy, free] = [await database.addInstance(projectId), await database.addInstance(projectId)];
  const operations: Record<string, string> = {};
  for (const id of [busy, free]) {
    const vmmId = await plantVmm(id, 'destroyed', 400);
    operations[id] = randomUUID();
    await run(sql`
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_ended)
      VALUES (${operations[id]}, 'start', ${id}, ${vmmId}, 'w', true, ${ago(400)})`);
    await run(sql`
      UPDATE instance SET state = 'destroyed', time_deleted = ${ago(400)}, state_generation = 2 WHERE id = ${id}`);
  }
  const request = { keptMs: KEPT_MS, limit: 10, openOperationIds: [] };
  const holder = new pg.Client({ connectionString: database.url });
  await holder.connect();
  try {
    await holder.query('BEGIN');
    await holder.query('SELECT 1 FROM operation WHERE id = $1 FOR UPDATE', [operations[busy]]);
    expect(await reapOperations(db, request)).toBe(1);
    await holder.query('ROLLBACK');
    expect(await reapOperations(db, request)).toBe(1);
    await holder.query('BEGIN');
    await holder.query('SELECT 1 FROM instance WHERE id = $1 FOR UPDATE', [busy]);
    expect(await reapPastVmms(db, request)).toBe(1);
    expect(await reapInstances(db, request)).toBe(1);
    await holder.query('ROLLBACK');
    expect(await reapExpired(db, nothingOpen, KEPT_MS)).toEqual({ oldVmms: 1, oldInstances: 1 });
  } finally {
    await holder.end();
  }
});

test('of an operation whose workflow is still open nothing goes: its saga may run again, and must find that it is over', async () => {
  const { db } = database;
  const id = await database.addInstance(projectId);
  const { operationId, vmmId } = await startedInstance(db, id);
  await applyReport(db, vmmId, vmmReport('destroyed', 4));
  await commitUpdate(db, id);
  await deleteInstance(db, id);
  const asked: number[] = [];
  const open = {
    findOpenSagas: async (ageMs: number) => {
      asked.push(ageMs);
      return [operationId];
    },
  };
  expect(await reapExpired(db, open, 0)).toEqual({});
  expect((await idsOf('vmm')).has(vmmId)).toBe(true);
  expect(await reapExpired(db, nothingOpen, 0)).toEqual({ oldOperations: 1, oldVmms: 1, oldInstances: 1 });
  expect(asked).toEqual([0]);
});

test('a poller that was away while removals were forgotten begins anew, and misses nothing', async () => {
  const { db } = database;
  const [gone, stays] = [await database.addInstance(projectId), await database.addInstance(projectId)];
  const begun = await startedInstance(db, gone);
  await startedInstance(db, stays);
  const first = await readNetworkChanges(db, null, 100);
  expect(first.entries.map((entry) => entry.instance_id).sort()).toEqual([gone, stays].sort());
  await applyReport(db, begun.vmmId, vmmReport('destroyed', 4));
  await commitUpdate(db, gone);
  await deleteInstance(db, gone);
  const seen = await readNetworkChanges(db, first.cursor, 100);
  expect(seen.entries).toMatchObject([{ instance_id: gone, vmm_id: null }]);
  expect(await reapExpired(db, nothingOpen, 0)).toMatchObject({ oldInstances: 1 });

  const late = await readNetworkChanges(db, first.cursor, 100);
  expect(late).toMatchObject({ reset: true, entries: [{ instance_id: stays }] });
  // Who had read the removal goes on, and so does who began anew.
  for (const { cursor } of [seen, late])
    expect(await readNetworkChanges(db, cursor, 100)).toMatchObject({ reset: false, entries: [] });
});

// --- Every table ---

/** A row that is long over, for each table that is reaped; returns the condition that finds it. */
const OLD_ROWS: Readonly<Record<string, () => Promise<SQL>>> = {
  project: async () => {
    const id = await database.addProject();
    await run(sql`UPDATE project SET time_deleted = ${ago(31)} WHERE id = ${id}`);
    return sql`id = ${id}`;
  },
  instance: async () => {
    const id = await database.addInstance(projectId);
    await run(
      sql`UPDATE instance SET state = 'destroyed', time_deleted = ${ago(31)}, state_generation = 2 WHERE id = ${id}`,
    );
    return sql`id = ${id}`;
  },
  vmm: async () => sql`id = ${await plantVmm(await database.addInstance(projectId), 'destroyed', 31)}`,
  migration: async () => {
    const id = randomUUID();
    const instanceId = await database.addInstance(projectId);
    const [source, target] = [await plantVmm(instanceId, 'destroyed', 31), await plantVmm(instanceId, 'destroyed', 31)];
    await run(sql`
      INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id, time_created) VALUES (${id}, ${instanceId}, ${source}, ${target}, ${ago(31)})`);
    return sql`id = ${id}`;
  },
  operation: async () => {
    const id = randomUUID();
    await run(sql`
      INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, time_ended)
      VALUES (${id}, 'start', ${await database.addInstance(projectId)}, 'w', true, ${ago(31)})`);
    return sql`id = ${id}`;
  },
  idempotency_key: async () => {
    const key = randomUUID();
    await run(sql`
      INSERT INTO idempotency_key (key, call, request_digest, taken_by, instance_id, time_created)
      VALUES (${key}, 'start', sha256(''), gen_random_uuid(), ${await database.addInstance(projectId)}, ${ago(31)})`);
    return sql`key = ${key}`;
  },
  access_token: async () => {
    const id = randomUUID();
    await run(sql`
      INSERT INTO access_token (id, name, secret_hash, role, time_expires)
      VALUES (${id}, ${id}, sha256(${id}::text::bytea), 'viewer', ${ago(31)})`);
    return sql`id = ${id}`;
  },
  sled_certificate: async () => {
    const serial = randomUUID();
    await run(
      sql`INSERT INTO sled_certificate (serial, sled_id, time_expires) VALUES (${serial}, ${sledIds[0]}, ${ago(31)})`,
    );
    return sql`serial = ${serial}`;
  },
  sled_invite: async () => {
    const id = randomUUID();
    await run(
      sql`INSERT INTO sled_invite (id, sled_name, secret_hash, time_expires) VALUES (${id}, 'x', ${id}, ${ago(31)})`,
    );
    return sql`id = ${id}`;
  },
  audit_log: async () => {
    const id = randomUUID();
    await run(sql`
      INSERT INTO audit_log (id, time_started, time_completed, actor, actor_name, request_id, request_uri, operation, result)
      VALUES (${id}, ${ago(31)}, ${ago(31)}, 'local', 'x', 'x', 'x', 'x', 'success')`);
    return sql`id = ${id}`;
  },
};

describe('every table is bounded', () => {
  test('none is without a line, and no line is without a table', async () => {
    const result = await run(sql`
      SELECT tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'doctor')`);
    expect(result.rows.map((row) => String(row.tablename)).sort()).toEqual(Object.keys(TABLE_BOUNDS).sort());
  });
  const reaped = Object.keys(TABLE_BOUNDS).filter((table) => TABLE_BOUNDS[table]?.bound === 'reaped');
  test('each that is reaped has a case', () => {
    expect(Object.keys(OLD_ROWS).sort()).toEqual(reaped.sort());
  });
  test.each(reaped)('%s: a row that is long over goes, and none before its time', async (table) => {
    const found = await OLD_ROWS[table]?.();
    const there = async () =>
      (await run(sql`SELECT 1 FROM ${sql.identifier(table)} WHERE ${found ?? sql`false`}`)).rows.length;
    const pass = async (days: number) => {
      await forgetOldKeys(database.db, days * DAY_MS);
      await forgetOldRecords(database.db, days * DAY_MS, 100);
      await reapExpired(database.db, nothingOpen, days * DAY_MS);
    };
    await pass(32);
    expect(await there()).toBe(1);
    await pass(30);
    expect(await there()).toBe(0);
  });
});

// --- Plans ---

/** Tables whose past is long. */
const LONG = ['instance', 'vmm', 'migration', 'operation', 'audit_log', 'idempotency_key'];

interface PlanNode {
  readonly 'Node Type': string;
  readonly 'Relation Name'?: string;
  readonly 'Rows Removed by Filter'?: number;
  readonly 'Actual Loops'?: number;
  readonly Plans?: readonly PlanNode[];
}

test('with a long past every list, every loop and every batch finds its rows by an index', async () => {
  const { db } = database;
  const id = await database.addInstance(projectId);
  const { vmmId } = await startedInstance(db, id);
  await db.transaction(async (transaction) => {
    // Planted in bulk, past every guard; the journal would write down each row.
    await transaction.execute(sql`SET LOCAL session_replication_role = replica`);
    await transaction.execute(sql`SET LOCAL statement_timeout = 0`);
    for (const table of ['instance', 'vmm', 'migration', 'operation'])
      await transaction.execute(sql`ALTER TABLE ${sql.identifier(table)} DISABLE TRIGGER zz_doctor_journal`);
    await transaction.execute(sql`
      INSERT INTO instance (id, project_id, name, description, hostname, ncpus, memory_bytes, state, intended_state, time_created, time_deleted)
      SELECT gen_random_uuid(), ${projectId}, 'old-' || n, '', 'h', 1, 1, 'destroyed', 'destroyed', now() - interval '20 days', now() - n * interval '1 minute'
      FROM generate_series(1, 20000) n`);
    await transaction.execute(sql`
      INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, time_created, time_deleted)
      SELECT gen_random_uuid(), id, ${sledIds[0]}, '10.9.9.9', 1, 'destroyed', time_created, time_deleted FROM instance, generate_series(1, 2)
      WHERE time_deleted IS NOT NULL`);
    await transaction.execute(sql`
      INSERT INTO migration (id, instance_id, source_vmm_id, target_vmm_id, source_state, target_state, time_created)
      SELECT gen_random_uuid(), instance_id, min(id::text)::uuid, max(id::text)::uuid, 'completed', 'completed', min(time_deleted) FROM vmm
      WHERE time_deleted IS NOT NULL GROUP BY instance_id`);
    await transaction.execute(sql`
      INSERT INTO operation (id, kind, instance_id, vmm_id, workflow_id, succeeded, time_started, time_ended)
      SELECT gen_random_uuid(), 'start', instance_id, id, 'w', true, time_created, time_deleted FROM vmm WHERE time_deleted IS NOT NULL`);
    await transaction.execute(sql`
      INSERT INTO idempotency_key (key, call, request_digest, taken_by, instance_id, operation_id, time_created)
      SELECT gen_random_uuid(), 'start', sha256(''), gen_random_uuid(), instance_id, id, time_ended FROM operation WHERE time_ended > now() - interval '7 days'`);
    await transaction.execute(sql`
      INSERT INTO audit_log (id, time_started, time_completed, actor, actor_name, request_id, request_uri, operation, result)
      SELECT gen_random_uuid(), time_ended, time_ended, 'local', 'x', 'x', 'x', 'x', 'success' FROM operation WHERE time_ended IS NOT NULL`);
  });
  for (const table of [...LONG, 'instance_network', 'sled_reservation', 'project', 'sled'])
    await run(sql`ANALYZE ${sql.identifier(table)}`);

  const statements: { text: string; values: unknown[] }[] = [];
  const logger = { logQuery: (text: string, values: unknown[]) => void statements.push({ text, values }) };
  const watched = drizzle(database.pool, { schema, logger });
  const uses: Readonly<Record<string, () => Promise<unknown>>> = {
    'instances of a project by id': () =>
      listInstances(watched, { projectId, order: 'id_ascending', after: null, limit: 100 }),
    'instances of a project by name': () =>
      listInstances(watched, { projectId, order: 'name_ascending', after: null, limit: 100 }),
    'instances of a sled': () =>
      listInstances(watched, { sledId: sledIds[0], order: 'id_ascending', after: null, limit: 100 }),
    'all instances': () => listInstances(watched, { order: 'id_ascending', after: null, limit: 100 }),
    'a history': () => readHistory(watched, id),
    'the last migration': () => readLastMigration(watched, id),
    'a snapshot': () => readSnapshot(watched, id),
    "a sled's VMMs": () => readSledVmms(watched, sledIds[0] ?? '', []),
    'placed VMMs': () => readPlacedVmms(watched, [vmmId]),
    'owners of what workflows are about': () => findOwningInstances(watched, [vmmId, 'sled-1']),
    'candidates of the updater': () => findUpdateCandidates(watched),
    'candidates of auto-restart': () => findRestartCandidates(watched, 20),
    'open operations': () => findOpenOperations(watched, 0),
    keys: () => forgetOldKeys(watched, 8 * DAY_MS),
    'audit records': () => forgetOldRecords(watched, 90 * DAY_MS, 100),
    ...Object.fromEntries(
      EXPIRING.map(([kind, reapBatch]) => [
        kind,
        () => reapBatch(watched, { keptMs: 13.8 * DAY_MS, limit: 200, openOperationIds: [] }),
      ]),
    ),
  };
  const scans: string[] = [];
  for (const [use, read] of Object.entries(uses)) {
    statements.length = 0;
    await read();
    const client = await database.pool.connect();
    try {
      for (const { text, values } of [...statements]) {
        await client.query('BEGIN');
        const explained = await client.query(`EXPLAIN (ANALYZE, FORMAT JSON) ${text}`, values);
        await client.query('ROLLBACK');
        const walk = (node: PlanNode): void => {
          const relation = node['Relation Name'] ?? '';
          const loops = node['Actual Loops'] ?? 1;
          const passedOver = (node['Rows Removed by Filter'] ?? 0) * loops;
          const whole = node['Node Type'] === 'Seq Scan' && loops > 0;
          if (LONG.includes(relation) && (whole || passedOver > 1_000))
            scans.push(`${use}: ${node['Node Type']} of ${relation} passes over ${passedOver} rows`);
          for (const child of node.Plans ?? []) walk(child);
        };
        walk(explained.rows[0]['QUERY PLAN'][0].Plan);
      }
    } finally {
      client.release();
    }
  }
  expect(scans).toEqual([]);
  // The foreign keys' own look-ups: each column that names one of these tables is the first of an index that has all its rows.
  const bare = await run(sql`
    SELECT conrelid::regclass::text || '.' || attname AS at FROM pg_constraint
    JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
    WHERE contype = 'f' AND confrelid::regclass::text IN ('instance', 'vmm', 'migration', 'operation') AND NOT EXISTS (
      SELECT 1 FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1]
        AND (indpred IS NULL OR pg_get_expr(indpred, indrelid) = '(' || attname || ' IS NOT NULL)'))
    ORDER BY 1`);
  // Few instances migrate at a time, and an index has just those.
  expect(bare.rows.map((row) => row.at)).toEqual(['instance.migration_id']);
});
