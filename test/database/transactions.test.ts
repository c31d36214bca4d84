/** Each transaction of the sagas alone, on a real PostgreSQL: what it writes, what it must leave, and what it gives way to. */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Database, Queryable } from '../../db/connect.ts';
import { type InstanceRecord, readInstance } from '../../db/queries/read-instance.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimMigration } from '../../db/transactions/claim-migration.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { expungeSled } from '../../db/transactions/expunge-sled.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { AlreadyUnwound } from '../../db/transactions/refuse-operation.ts';
import { recordSucceededOperation } from '../../db/transactions/succeed-operation.ts';
import { Refusal } from '../../model/refusal.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  claimedMigration,
  newAttempt,
  type SagaAttempt,
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
  sleds = [await database.addSled(), await database.addSled()];
});
afterAll(() => database?.stop());

async function start(
  instanceId: string,
  reason: 'user' | 'auto_restart' = 'user',
  attempt = newAttempt('start', instanceId),
) {
  const claim = await claimStart(database.db, { ...attempt, reason });
  return { ...attempt, claim };
}
const report = (...[vmmId, ...states]: [vmmId: string, ...Parameters<typeof vmmReport>]) =>
  applyReport(database.db, vmmId, vmmReport(...states));
async function running() {
  const begun = await start(await database.addInstance(projectId));
  await report(begun.vmmId, 'running', 3);
  return begun;
}
async function migrating(source?: SagaAttempt) {
  source ??= await running();
  const { active } = await record(source.instanceId);
  const migration = newAttempt('migrate', source.instanceId);
  await claimedMigration(database.db, migration, sleds.find((id) => id !== active?.sledId) ?? '');
  return { ...migration, sourceVmmId: source.vmmId };
}
async function record(id: string): Promise<InstanceRecord> {
  const found = await readInstance(database.db, id);
  if (found === null) throw new Error(`no instance ${id}`);
  return found;
}
async function rows(query: ReturnType<typeof sql>): Promise<Record<string, unknown>[]> {
  return (await database.db.execute(query)).rows;
}
const reservations = async () =>
  (await rows(sql`SELECT vmm_id, kind FROM sled_reservation ORDER BY kind`)).map((row) => [row.vmm_id, row.kind]);
const charges = async () =>
  (await rows(sql`SELECT instance_id, cpus::int AS cpus FROM provisioning_charge`)).map(Object.values);
const stateOf = async (vmmId: string) =>
  (await rows(sql`SELECT state, state_generation::int AS gen FROM vmm WHERE id = ${vmmId}`))[0];
const unwind = (attempt: SagaAttempt, { confirmed = true, spareRunning = false } = {}) =>
  unwoundAttempt(database.db, attempt, confirmed, spareRunning);

describe('a claim', () => {
  test('takes exactly what the instance needs, and gives exactly that back', async () => {
    const { instanceId, vmmId } = await running();
    expect(await charges()).toEqual([[instanceId, 2]]);
    expect(await reservations()).toEqual([[vmmId, 'active']]);
    await report(vmmId, 'destroyed', 4);
    await commitUpdate(database.db, instanceId);
    expect(await charges()).toEqual([]);
    expect(await reservations()).toEqual([]);
    expect(await rows(sql`SELECT sum(reserved_threads)::int AS threads FROM sled`)).toEqual([{ threads: 0 }]);
    expect(await rows(sql`SELECT charged_cpus::int AS cpus FROM project`)).toEqual([{ cpus: 0 }]);
  });
  test('that another one overtook between its reading and its writing reads again', async () => {
    const instanceId = await database.addInstance(projectId);
    // After a start that was undone the intent says "running" already: only the generation tells the two apart.
    await unwind(await start(instanceId));
    const claims = await database.db.transaction(async (holder) => {
      await holder.execute(sql`SELECT 1 FROM instance WHERE id = ${instanceId} FOR UPDATE`);
      const both = [start(instanceId), start(instanceId)];
      await waitUntil(async () => {
        const waiting = await rows(sql`SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'`);
        return waiting.length === 2;
      }, 'the two claims never waited for the row');
      return both;
    });
    const made = (await Promise.all(claims)).filter(({ claim }) => claim !== null);
    expect(made).toHaveLength(1);
    expect((await record(instanceId)).instance).toMatchObject({ activeVmmId: made[0]?.vmmId, stateGeneration: 3 });
  });
  test('by an automatic restart respects a stop that the user asked for meanwhile', async () => {
    const { instanceId, vmmId } = await running();
    await report(vmmId, 'failed', 4);
    await commitUpdate(database.db, instanceId);
    expect((await record(instanceId)).externalState).toBe('failed');
    await recordStop(database.db, instanceId);
    expect((await record(instanceId)).externalState).toBe('stopped');
    await expect(start(instanceId, 'auto_restart')).rejects.toBeInstanceOf(Refusal);
  });
  test('that comes after its saga has unwound makes nothing', async () => {
    const instanceId = await database.addInstance(projectId);
    const late = newAttempt('start', instanceId);
    await unwind(late);
    await expect(start(instanceId, 'user', late)).rejects.toBeInstanceOf(AlreadyUnwound);
    expect(await reservations()).toEqual([]);
    expect((await record(instanceId)).instance).toMatchObject({ state: 'no_vmm', activeVmmId: null });
    expect((await start(instanceId)).claim).not.toBeNull();
  });
  test('that comes after its saga has unwound and an update has cleared that is refused, whatever its sled still holds', async () => {
    const late = await start(await database.addInstance(projectId));
    await unwind(late, { confirmed: false });
    await commitUpdate(database.db, late.instanceId);
    await expect(start(late.instanceId, 'user', late)).rejects.toBeInstanceOf(AlreadyUnwound);
    const source = await running();
    const migration = await migrating(source);
    const destinationSledId = (await record(source.instanceId)).target?.sledId ?? '';
    await unwind(migration, { confirmed: false });
    await commitUpdate(database.db, source.instanceId);
    await expect(claimMigration(database.db, { ...migration, destinationSledId })).rejects.toBeInstanceOf(
      AlreadyUnwound,
    );
    expect((await reservations()).map(([, kind]) => kind)).toEqual(['active', 'tombstoned', 'tombstoned']);
  });
});

test('an instance is created while a start in its project is being charged, without waiting for it', async () => {
  await database.db.transaction(async (charging) => {
    await charging.execute(sql`UPDATE project SET charged_cpus = charged_cpus + 1 WHERE id = ${projectId}`);
    // A lock that both want would end this by the statement's time limit.
    expect(await database.addInstance(projectId)).toMatch(/-/);
  });
});

describe('a report', () => {
  test('counts only when its generation is newer', async () => {
    const { vmmId } = await running();
    for (const gen of [1, 2, 3]) await report(vmmId, 'stopping', gen);
    expect(await stateOf(vmmId)).toEqual({ state: 'running', gen: 3 });
    await report(vmmId, 'stopping', 4);
    expect(await stateOf(vmmId)).toEqual({ state: 'stopping', gen: 4 });
  });
  test('never brings a gone VMM back to life', async () => {
    for (const end of ['destroyed', 'failed'] as const) {
      const { vmmId } = await running();
      await report(vmmId, end, 4);
      await report(vmmId, 'running', 9);
      expect(await stateOf(vmmId)).toEqual({ state: end, gen: 4 });
    }
  });
  test('is not written to a VMM that is being unwound', async () => {
    const instanceId = await database.addInstance(projectId);
    const begun = await start(instanceId);
    await beginUnwind(database.db, { ...begun, kind: 'start', spareRunning: false });
    expect(await report(begun.vmmId, 'running', 9)).toMatchObject({ verdict: 'unwound', wrote: false });
    expect(await stateOf(begun.vmmId)).toEqual({ state: 'creating', gen: 1 });
  });
  test('speaks of its own side of a migration only, once and for all', async () => {
    const { vmmId, sourceVmmId, migrationId, instanceId } = await migrating();
    const sides = async () => {
      const { migration } = await record(instanceId);
      return [migration?.sourceState, migration?.targetState];
    };
    await report(vmmId, 'migrating', 2, { out: { id: migrationId, state: 'completed', gen: 5 } });
    await report(sourceVmmId, 'migrating', 4, { in: { id: migrationId, state: 'completed', gen: 5 } });
    expect(await sides()).toEqual(['pending', 'pending']);
    await report(vmmId, 'migrating', 3, { in: { id: migrationId, state: 'in_progress', gen: 2 } });
    await report(sourceVmmId, 'migrating', 5, { out: { id: migrationId, state: 'failed', gen: 2 } });
    expect(await sides()).toEqual(['failed', 'in_progress']);
    await report(sourceVmmId, 'running', 6, { out: { id: migrationId, state: 'completed', gen: 9 } });
    await report(vmmId, 'migrating', 4, { in: { id: migrationId, state: 'pending', gen: 2 } });
    expect(await sides()).toEqual(['failed', 'in_progress']);
  });
  test('that comes with a register marks the VMM as commanded only while the user wants it to run', async () => {
    const instanceId = await database.addInstance(projectId);
    const { vmmId } = await start(instanceId);
    await recordStop(database.db, instanceId);
    expect(await applyReport(database.db, vmmId, vmmReport('starting', 2), { markCommanded: true })).toMatchObject({
      intendedState: 'stopped',
    });
    expect((await record(instanceId)).active?.commandedAt).toBeNull();
  });
});

describe('an unwind', () => {
  test('marks its own VMM, and leaves the ids and the generation of the instance', async () => {
    const instanceId = await database.addInstance(projectId);
    const begun = await start(instanceId);
    const before = (await record(instanceId)).instance;
    await unwind(begun);
    const after = await record(instanceId);
    expect(after.instance).toMatchObject({
      state: 'vmm',
      activeVmmId: begun.vmmId,
      stateGeneration: before.stateGeneration,
    });
    expect(after).toMatchObject({ externalState: 'stopped', active: { state: 'saga_unwound' } });
    expect(await reservations()).toEqual([]);
    expect(await charges()).toEqual([]);
  });
  test('of a migration fails its side, and leaves the guest where it was', async () => {
    const migration = await migrating();
    await unwind(migration);
    const after = await record(migration.instanceId);
    expect(after.externalState).toBe('running');
    expect(after.instance).toMatchObject({ activeVmmId: migration.sourceVmmId, targetVmmId: migration.vmmId });
    expect(after.migration).toMatchObject({ sourceState: 'failed', targetState: 'failed' });
    expect(await reservations()).toEqual([[migration.sourceVmmId, 'active']]);
    expect(await charges()).toHaveLength(1);
  });
  test('that ends twice, after a new start, takes nothing from the new one', async () => {
    const instanceId = await database.addInstance(projectId);
    const first = await start(instanceId);
    const begun = await unwind(first);
    const second = await start(instanceId);
    await finishUnwind(database.db, {
      ...first,
      kind: 'start',
      confirmed: true,
      neverCommanded: !begun.commanded,
      error: unwindError(),
    });
    expect(await charges()).toEqual([[instanceId, 2]]);
    expect(await reservations()).toEqual([[second.vmmId, 'active']]);
  });
  test('writes saga_unwound over what the row says, also over failed', async () => {
    const { vmmId, ...rest } = await running();
    await failVmm(database.db, vmmId, 'its sled does not know it');
    await unwind({ vmmId, ...rest });
    expect(await stateOf(vmmId)).toMatchObject({ state: 'saga_unwound' });
    expect((await record(rest.instanceId)).externalState).toBe('stopped');
  });
  test('without the sled’s answer keeps the reservation, tombstoned, until the sled is expunged', async () => {
    const instanceId = await database.addInstance(projectId);
    const begun = await start(instanceId);
    const sledId = (await record(instanceId)).active?.sledId ?? '';
    await unwind(begun, { confirmed: false });
    expect(await reservations()).toEqual([[begun.vmmId, 'tombstoned']]);
    expect(await charges()).toEqual([]);
    await expungeSled(database.db, sledId);
    expect(await reservations()).toEqual([]);
  });
  test('spares a guest whose sled has reported it as running, and a migration under way', async () => {
    const begun = await running();
    expect((await unwind(begun, { spareRunning: true })).spared).toBe(true);
    expect(await stateOf(begun.vmmId)).toMatchObject({ state: 'running' });
    const migration = await migrating();
    await report(migration.vmmId, 'migrating', 2, { in: { id: migration.migrationId, state: 'in_progress', gen: 2 } });
    expect((await unwind(migration, { spareRunning: true })).spared).toBe(true);
  });
  test('of a start spares a guest that has moved on, although its sled does not know it any more', async () => {
    const begun = await running();
    const migration = await migrating(begun);
    await report(begun.vmmId, 'destroyed', 4, { out: { id: migration.migrationId, state: 'completed', gen: 3 } });
    expect((await unwind(begun)).spared).toBe(true);
    await report(migration.vmmId, 'running', 3, { in: { id: migration.migrationId, state: 'completed', gen: 3 } });
    await commitUpdate(database.db, begun.instanceId);
    expect((await unwind(begun)).spared).toBe(true);
    expect(await record(begun.instanceId)).toMatchObject({ externalState: 'running', active: { id: migration.vmmId } });
    expect(await charges()).toHaveLength(1);
  });
});

describe('a step that runs beside another run of the same saga', () => {
  /** Runs a statement that has to wait for what `first` wrote, until `first` commits. */
  async function behind<T>(first: (transaction: Queryable) => Promise<unknown>, second: () => Promise<T>): Promise<T> {
    const waiting = await database.db.transaction(async (holder) => {
      await first(holder);
      const result = second();
      await waitUntil(async () => {
        const blocked = await rows(sql`SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'`);
        return blocked.length > 0;
      }, 'nothing waits for the row');
      return { result };
    });
    return waiting.result;
  }
  const operationOf = async ({ operationId }: SagaAttempt) =>
    (await rows(sql`SELECT succeeded FROM operation WHERE id = ${operationId}`))[0]?.succeeded;
  const unwinding = async (vmmId: string) =>
    (await rows(sql`SELECT unwinding_since IS NOT NULL AS unwinding FROM vmm WHERE id = ${vmmId}`))[0]?.unwinding;

  test('an unwind of a migration is begun by nothing but a refusal once its destination was commanded', async () => {
    const migration = await migrating();
    const failed = { ...migration, spareRunning: true };
    await applyReport(database.db, migration.vmmId, vmmReport('migrating', 2), { markCommanded: true });
    expect(await beginUnwind(database.db, failed)).toMatchObject({ forward: true, spared: false, ended: false });
    expect(await unwinding(migration.vmmId)).toBe(false);
    expect(await beginUnwind(database.db, { ...failed, refused: true })).toMatchObject({ forward: false });
    expect(await unwinding(migration.vmmId)).toBe(true);
    // What has begun goes on, whoever begins it again.
    expect(await beginUnwind(database.db, failed)).toMatchObject({ forward: false, ended: false });
    await unwind(migration);
    expect(await beginUnwind(database.db, failed)).toMatchObject({ forward: false, ended: true });
  });
  test('an unwind of a migration is begun where its destination was not commanded, or is given up', async () => {
    const early = await migrating();
    expect(await beginUnwind(database.db, { ...early, spareRunning: true })).toMatchObject({ forward: false });
    const late = await migrating();
    await applyReport(database.db, late.vmmId, vmmReport('migrating', 2), { markCommanded: true });
    await rows(
      sql`UPDATE sled SET policy = 'expunged', time_expunged = now() WHERE id = (SELECT sled_id FROM vmm WHERE id = ${late.vmmId})`,
    );
    expect(await beginUnwind(database.db, { ...late, spareRunning: true })).toMatchObject({
      forward: false,
      sled: null,
    });
  });
  test('an unwind is not begun once the operation has succeeded', async () => {
    const begun = await start(await database.addInstance(projectId));
    await applyReport(database.db, begun.vmmId, vmmReport('starting', 2), { succeed: begun });
    expect((await unwind(begun)).spared).toBe(true);
    expect(await unwinding(begun.vmmId)).toBe(false);
    expect(await operationOf(begun)).toBe(true);
  });
  test('no success is recorded once the unwind has begun', async () => {
    const begun = await start(await database.addInstance(projectId));
    await beginUnwind(database.db, { ...begun, spareRunning: false });
    const answered = await applyReport(database.db, begun.vmmId, vmmReport('starting', 2), { succeed: begun });
    expect(answered?.verdict).toBe('unwound');
    expect(await recordSucceededOperation(database.db, begun)).toBe(false);
    expect(await operationOf(begun)).toBeNull();
    await unwind(begun);
    expect(await recordSucceededOperation(database.db, begun)).toBe(false);
    expect(await operationOf(begun)).toBe(false);
  });
  test('an unwind that waits for the answer to a command finds the success that this wrote', async () => {
    const begun = await start(await database.addInstance(projectId));
    const answer = vmmReport('starting', 2);
    const unwound = await behind(
      (holder) => applyReport(holder, begun.vmmId, answer, { succeed: begun }),
      () => unwind(begun),
    );
    expect(unwound.spared).toBe(true);
    expect(await unwinding(begun.vmmId)).toBe(false);
  });
  test('an unwind that waits for a report finds the side of the migration that this wrote', async () => {
    const migration = await migrating();
    const report = vmmReport('migrating', 2, { in: { id: migration.migrationId, state: 'in_progress', gen: 2 } });
    const unwound = await behind(
      (holder) => applyReport(holder, migration.vmmId, report),
      () => unwind(migration, { spareRunning: true }),
    );
    expect(unwound.spared).toBe(true);
    expect(await operationOf(migration)).toBe(true);
  });
  test('the answer to a command that waits for the unwind records no success', async () => {
    const begun = await start(await database.addInstance(projectId));
    const answered = await behind(
      (holder) => beginUnwind(holder as Database, { ...begun, spareRunning: false }),
      () => applyReport(database.db, begun.vmmId, vmmReport('starting', 2), { succeed: begun }),
    );
    expect(answered?.verdict).toBe('unwound');
    expect(await operationOf(begun)).toBeNull();
  });
  test('an unwind that waits for the claim finds its VMM', async () => {
    const attempt = newAttempt('start', await database.addInstance(projectId));
    const unwound = await behind(
      (holder) => claimStart(holder as Database, { ...attempt, reason: 'user' }),
      () => unwind(attempt),
    );
    expect(unwound).toMatchObject({ spared: false, sled: { name: expect.any(String) } });
    expect(await reservations()).toEqual([]);
    expect(await operationOf(attempt)).toBe(false);
  });
  test('a claim is made once, and returned each time', async () => {
    const attempt = newAttempt('start', await database.addInstance(projectId));
    const { claim } = await start(attempt.instanceId, 'user', attempt);
    expect((await start(attempt.instanceId, 'user', attempt)).claim).toEqual(claim);
  });
  test('a claim that would be refused, since it was made and has moved on, is returned; after the success it is done', async () => {
    const migration = await migrating();
    const { sourceVmmId, instanceId, vmmId, migrationId: id } = migration;
    const { target } = await record(instanceId);
    const request = { ...migration, destinationSledId: target?.sledId ?? '' };
    await report(sourceVmmId, 'migrating', 4, { out: { id, state: 'completed', gen: 3 } });
    await report(vmmId, 'running', 3, { in: { id, state: 'completed', gen: 3 } });
    await commitUpdate(database.db, instanceId);
    expect(await claimMigration(database.db, request)).toMatchObject({ outcome: 'claimed', claim: { vmmId } });
    expect(await operationOf(migration)).toBeNull();
    await recordSucceededOperation(database.db, migration);
    expect(await claimMigration(database.db, request)).toEqual({ outcome: 'already' });
    expect(await operationOf(migration)).toBe(true);
  });
  test('a claim that was refused makes nothing when it comes once more, although it would fit now', async () => {
    const instanceId = await database.addInstance(projectId);
    for (const id of sleds) await rows(sql`UPDATE sled SET policy = 'no_provision' WHERE id = ${id}`);
    const attempt = newAttempt('start', instanceId);
    await expect(start(instanceId, 'user', attempt)).rejects.toBeInstanceOf(Refusal);
    for (const id of sleds) await rows(sql`UPDATE sled SET policy = 'in_service' WHERE id = ${id}`);
    await expect(start(instanceId, 'user', attempt)).rejects.toBeInstanceOf(Refusal);
    expect((await record(instanceId)).instance).toMatchObject({ state: 'no_vmm', stateGeneration: 1 });
    expect(await operationOf(attempt)).toBe(false);
  });
  test('a claim that had nothing to do has nothing to do when it comes once more, although the guest ended meanwhile', async () => {
    const { instanceId, vmmId } = await running();
    const attempt = newAttempt('start', instanceId);
    expect((await start(instanceId, 'user', attempt)).claim).toBeNull();
    await report(vmmId, 'destroyed', 4);
    await commitUpdate(database.db, instanceId);
    expect((await start(instanceId, 'user', attempt)).claim).toBeNull();
    expect((await record(instanceId)).externalState).toBe('stopped');
    // Nor is it unwound, whatever a run of it thinks.
    expect((await unwind(attempt)).spared).toBe(true);
    expect(await rows(sql`SELECT 1 FROM vmm WHERE id = ${attempt.vmmId}`)).toEqual([]);
  });
});

describe('the control plane’s own verdict', () => {
  test('is not passed on a VMM that its sled may not know yet, nor on one that is being unwound', async () => {
    const instanceId = await database.addInstance(projectId);
    const begun = await start(instanceId);
    expect(await failVmm(database.db, begun.vmmId, 'unknown')).toBeNull();
    await report(begun.vmmId, 'starting', 2);
    await beginUnwind(database.db, { ...begun, kind: 'start', spareRunning: false });
    expect(await failVmm(database.db, begun.vmmId, 'unknown')).toBeNull();
    expect(await stateOf(begun.vmmId)).toMatchObject({ state: 'starting' });
  });
  test('says nothing about a side of a migration', async () => {
    const migration = await migrating();
    await failVmm(database.db, migration.sourceVmmId, 'unknown');
    expect((await record(migration.instanceId)).migration?.sourceState).toBe('pending');
    expect((await commitUpdate(database.db, migration.instanceId))?.case).toBe('unknown');
  });
});

describe('an update', () => {
  test('after a move makes the target’s reservation the active one, and keeps the source’s while it lives', async () => {
    const migration = await migrating();
    const { sourceVmmId, migrationId, instanceId, vmmId } = migration;
    await report(sourceVmmId, 'migrating', 4, { out: { id: migrationId, state: 'completed', gen: 3 } });
    await report(vmmId, 'running', 3, { in: { id: migrationId, state: 'completed', gen: 3 } });
    await commitUpdate(database.db, instanceId);
    expect((await record(instanceId)).instance).toMatchObject({ activeVmmId: vmmId, targetVmmId: null });
    expect(await reservations()).toEqual([
      [vmmId, 'active'],
      [sourceVmmId, 'tombstoned'],
    ]);
    await report(sourceVmmId, 'destroyed', 5);
    await commitUpdate(database.db, instanceId);
    expect(await reservations()).toEqual([[vmmId, 'active']]);
    expect(await rows(sql`SELECT id FROM vmm WHERE time_deleted IS NULL`)).toEqual([{ id: vmmId }]);
  });
  test('of a deleted instance clears the leftover that the delete left', async () => {
    const instanceId = await database.addInstance(projectId);
    const begun = await start(instanceId);
    await unwind(begun);
    await deleteInstance(database.db, instanceId);
    expect((await record(instanceId)).instance).toMatchObject({ state: 'vmm', activeVmmId: begun.vmmId });
    await commitUpdate(database.db, instanceId);
    expect((await record(instanceId)).instance).toMatchObject({ state: 'destroyed', activeVmmId: null });
  });
  test('a user who asked for stop gets Stopped, also when the VMM fails', async () => {
    const { instanceId, vmmId } = await running();
    await recordStop(database.db, instanceId);
    await report(vmmId, 'failed', 4);
    await commitUpdate(database.db, instanceId);
    expect((await record(instanceId)).externalState).toBe('stopped');
  });
});
