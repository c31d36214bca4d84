/**
 * Traps known from the field, at the level of the records: which reports and transactions may come in which order, and what
 * must come of it. Each test names the trap and where it was met.
 */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readInstance } from '../../db/queries/read-instance.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { examine } from '../../doctor/examine.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  claimedMigration,
  claimedStart,
  migratingInstance,
  newAttempt,
  type SagaAttempt,
  startedInstance,
  unwindError,
  unwoundAttempt,
  vmmReport,
} from '../support/saga-steps.ts';

let database: TestDatabase;
let projectId: string;
let sleds: string[];
beforeAll(async () => {
  database = await startTestDatabase();
});
beforeEach(async () => {
  await database.clear();
  projectId = await database.addProject();
  sleds = [await database.addSled(), await database.addSled(), await database.addSled()];
});
afterAll(() => database?.stop());

/** A running instance, and one whose migration is in progress on both sides. */
async function started(): Promise<SagaAttempt & { sledId: string }> {
  return startedInstance(database.db, await database.addInstance(projectId));
}
async function migrating(): Promise<{ source: SagaAttempt; target: SagaAttempt; instanceId: string }> {
  const source = await started();
  const there = sleds.find((id) => id !== source.sledId) ?? '';
  return { source, target: await migratingInstance(database.db, source, there), instanceId: source.instanceId };
}

async function updated(instanceId: string) {
  await commitUpdate(database.db, instanceId);
  const record = await readInstance(database.db, instanceId);
  if (record === null) throw new Error('the instance is gone');
  return record;
}

async function holds(instanceId: string): Promise<string[]> {
  const { rows } = await database.db.execute(sql`
    SELECT kind::text AS what FROM sled_reservation WHERE instance_id = ${instanceId}
    UNION ALL SELECT 'charge' FROM provisioning_charge WHERE instance_id = ${instanceId} ORDER BY what`);
  return rows.map((row) => String(row.what));
}

async function contentedDoctor(): Promise<void> {
  expect((await examine({ db: database.db, atRest: false, journal: 'required' })).findings).toEqual([]);
}

describe('ids that survive an instance that is not incarnated, so that an old target is promoted later (two guests)', () => {
  test('PostgreSQL refuses an instance without a VMM that still names a target', async () => {
    const { instanceId } = await migrating();
    await expect(
      database.db.execute(sql`
        UPDATE instance SET state = 'no_vmm', active_vmm_id = NULL, state_generation = state_generation + 1 WHERE id = ${instanceId}`),
    ).rejects.toThrow();
  });

  test('once both VMMs are gone all ids are cleared, and the old target’s late report moves nothing', async () => {
    const { source, target, instanceId } = await migrating();
    await applyReport(database.db, source.vmmId, vmmReport('failed', 5));
    await failVmm(database.db, target.vmmId, 'its sled does not know it');
    const ended = await updated(instanceId);
    expect(ended.instance).toMatchObject({ state: 'failed', activeVmmId: null, targetVmmId: null, migrationId: null });
    expect(await holds(instanceId)).toEqual([]);

    const again = await startedInstance(database.db, instanceId);
    const arrived = vmmReport('running', 9, { in: { id: target.migrationId, state: 'completed', gen: 9 } });
    expect(await applyReport(database.db, target.vmmId, arrived)).toBeNull();
    expect((await updated(instanceId)).instance).toMatchObject({ activeVmmId: again.vmmId, targetVmmId: null });
    await contentedDoctor();
  });

  test('a target that was unwound is not promoted by its late success', async () => {
    const source = await started();
    const attempt = newAttempt('migrate', source.instanceId);
    await claimedMigration(database.db, attempt, sleds.find((id) => id !== source.sledId) ?? '');
    await unwoundAttempt(database.db, attempt, true);
    const arrived = vmmReport('running', 9, { in: { id: attempt.migrationId, state: 'completed', gen: 9 } });
    expect((await applyReport(database.db, attempt.vmmId, arrived))?.verdict).toBe('unwound');
    expect((await updated(source.instanceId)).instance).toMatchObject({
      activeVmmId: source.vmmId,
      targetVmmId: null,
    });
    await contentedDoctor();
  });
});

test('a completed migration whose target is already gone: the instance is Stopped, not back on its source', async () => {
  const { source, target, instanceId } = await migrating();
  const id = target.migrationId;
  await applyReport(database.db, source.vmmId, vmmReport('stopping', 5, { out: { id, state: 'completed', gen: 3 } }));
  await applyReport(database.db, target.vmmId, vmmReport('running', 3, { in: { id, state: 'completed', gen: 3 } }));
  await applyReport(database.db, target.vmmId, vmmReport('destroyed', 6, { in: { id, state: 'completed', gen: 3 } }));
  const { instance } = await updated(instanceId);
  expect(instance).toMatchObject({ state: 'no_vmm', activeVmmId: null, targetVmmId: null, migrationId: null });
  // The source's process may still hold memory; the charge is gone.
  expect(await holds(instanceId)).toEqual(['tombstoned']);
  await applyReport(database.db, source.vmmId, vmmReport('destroyed', 6));
  await updated(instanceId);
  expect(await holds(instanceId)).toEqual([]);
  await contentedDoctor();
});

describe('a migration torn down after it had succeeded (Omicron, TODO in instance_migrate.rs)', () => {
  test.each(['in_progress', 'completed'] as const)('its saga leaves a target alone whose side is %s', async (state) => {
    const { target, instanceId } = await migrating();
    const arrived = vmmReport('running', 3, { in: { id: target.migrationId, state, gen: 3 } });
    await applyReport(database.db, target.vmmId, arrived);
    const begun = await beginUnwind(database.db, { ...target, spareRunning: true, refused: true });
    expect(begun.spared).toBe(true);
    expect((await readInstance(database.db, instanceId))?.target?.unwindingSince).toBeNull();
    await contentedDoctor();
  });
});

describe('a source that dies after it handed over, while the target lives (KubeVirt issue 13112)', () => {
  test.each([
    ['without a state of the migration', undefined],
    ['and wrongly calls the migration failed', 'failed'],
  ] as const)('%s: the guest stays where it arrived', async (_, claimed) => {
    const { source, target, instanceId } = await migrating();
    const id = target.migrationId;
    const last = vmmReport('failed', 5, claimed === undefined ? {} : { out: { id, state: claimed, gen: 3 } });
    await applyReport(database.db, source.vmmId, last);
    const waiting = await updated(instanceId);
    expect(waiting.externalState).toBe('migrating');
    expect(waiting.instance).toMatchObject({ activeVmmId: source.vmmId, targetVmmId: target.vmmId });
    expect((await commitUpdate(database.db, instanceId))?.left.ask).toBe(target.vmmId);

    await applyReport(database.db, target.vmmId, vmmReport('running', 3, { in: { id, state: 'completed', gen: 3 } }));
    const moved = await updated(instanceId);
    expect(moved.externalState).toBe('running');
    expect(moved.instance).toMatchObject({ activeVmmId: target.vmmId, targetVmmId: null, migrationId: null });
    expect(await holds(instanceId)).toEqual(['active', 'charge']);
    await contentedDoctor();
  });
});

test('a source that dies before it handed over: Failed once the target has reported so, and nothing is held', async () => {
  const { source, target, instanceId } = await migrating();
  await applyReport(database.db, source.vmmId, vmmReport('failed', 5));
  expect((await updated(instanceId)).externalState).toBe('migrating');
  const never = vmmReport('failed', 3, { in: { id: target.migrationId, state: 'failed', gen: 3 } });
  await applyReport(database.db, target.vmmId, never);
  const lost = await updated(instanceId);
  expect(lost.instance).toMatchObject({ state: 'failed', activeVmmId: null, targetVmmId: null });
  expect(await holds(instanceId)).toEqual([]);
  await startedInstance(database.db, instanceId);
  await contentedDoctor();
});

describe('quota released twice, or in another amount than was charged', () => {
  async function inUse(): Promise<number> {
    const { rows } = await database.db.execute(sql`SELECT charged_cpus FROM project WHERE id = ${projectId}`);
    return Number(rows[0]?.charged_cpus);
  }

  test('an instance that was resized under its charge gives back what was taken', async () => {
    const one = await started();
    await started();
    expect(await inUse()).toBe(4);
    await database.db.execute(sql`UPDATE instance SET ncpus = 32 WHERE id = ${one.instanceId}`);
    await applyReport(database.db, one.vmmId, vmmReport('destroyed', 9));
    await updated(one.instanceId);
    expect(await inUse()).toBe(2);
    await contentedDoctor();
  });

  test('an unwind that runs twice, the second time under the next start, releases once', async () => {
    const instanceId = await database.addInstance(projectId);
    const failed = newAttempt('start', instanceId);
    await claimedStart(database.db, failed);
    await unwoundAttempt(database.db, failed, true);
    expect(await inUse()).toBe(0);
    await database.db.execute(sql`UPDATE instance SET ncpus = 8 WHERE id = ${instanceId}`);
    const next = await startedInstance(database.db, instanceId);
    await finishUnwind(database.db, { ...failed, confirmed: true, neverCommanded: false, error: unwindError() });
    expect(await inUse()).toBe(8);
    expect(await holds(instanceId)).toEqual(['active', 'charge']);
    expect((await updated(instanceId)).instance.activeVmmId).toBe(next.vmmId);
    await contentedDoctor();
  });

  test('updates at once release once', async () => {
    const one = await started();
    await applyReport(database.db, one.vmmId, vmmReport('destroyed', 9));
    await Promise.all(Array.from({ length: 6 }, () => commitUpdate(database.db, one.instanceId)));
    expect(await inUse()).toBe(0);
    await contentedDoctor();
  });
});

describe('a guest’s own shutdown that overwrites a newer intent of the user', () => {
  test('a stop that came in between stays a stop', async () => {
    const { vmmId, instanceId } = await started();
    await applyReport(database.db, vmmId, vmmReport('destroyed', 9));
    await recordStop(database.db, instanceId);
    expect((await updated(instanceId)).instance).toMatchObject({ state: 'no_vmm', intendedState: 'stopped' });
  });

  test('without one it is the guest’s, and nobody restarts it', async () => {
    const { vmmId, instanceId } = await started();
    await applyReport(database.db, vmmId, vmmReport('destroyed', 9));
    expect((await updated(instanceId)).instance).toMatchObject({ state: 'no_vmm', intendedState: 'guest_shutdown' });
  });

  test('a delete over a leftover stays a delete', async () => {
    const instanceId = await database.addInstance(projectId);
    const failed = newAttempt('start', instanceId);
    await claimedStart(database.db, failed);
    await unwoundAttempt(database.db, failed, true);
    await deleteInstance(database.db, instanceId);
    expect((await updated(instanceId)).instance).toMatchObject({ state: 'destroyed', intendedState: 'destroyed' });
    await contentedDoctor();
  });
});

test('a stop that races a lost VMM: Stopped, and never restarted (Omicron issue 6809)', async () => {
  const { vmmId, instanceId } = await started();
  await recordStop(database.db, instanceId);
  await failVmm(database.db, vmmId, 'its sled does not know it any more');
  expect((await updated(instanceId)).instance).toMatchObject({ state: 'no_vmm', intendedState: 'stopped' });
  await contentedDoctor();
});

test('a late report of the source that marks a moved instance as stopped (CloudStack issue 3741): it stays running', async () => {
  const { source, target, instanceId } = await migrating();
  const id = target.migrationId;
  await applyReport(database.db, target.vmmId, vmmReport('running', 3, { in: { id, state: 'completed', gen: 3 } }));
  await updated(instanceId);
  await applyReport(database.db, source.vmmId, vmmReport('stopped', 7, { out: { id, state: 'completed', gen: 3 } }));
  await applyReport(database.db, source.vmmId, vmmReport('destroyed', 8, { out: { id, state: 'completed', gen: 3 } }));
  const record = await updated(instanceId);
  expect(record.externalState).toBe('running');
  expect(record.instance).toMatchObject({ activeVmmId: target.vmmId, intendedState: 'running' });
  await contentedDoctor();
});
