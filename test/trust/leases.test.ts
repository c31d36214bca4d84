/** Leases in the database: renewals, verdicts, the continuity of service that they depend on, and the return to it. */
import { randomUUID } from 'node:crypto';
import { eq, sql } from 'drizzle-orm';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { explainNoSled, pickSled, readDestination } from '../../db/queries/pick-sled.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readVmmPlace } from '../../db/queries/read-vmm-place.ts';
import { migration, sled, vmm } from '../../db/schema.ts';
import { beatLeaseService, forgetOldGaps } from '../../db/transactions/beat-lease-service.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { declareSledDead, judgeLease, returnDeadSled } from '../../db/transactions/declare-dead.ts';
import { expungeSled, settleExpunge } from '../../db/transactions/expunge-sled.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { type Renewal, renewLease } from '../../db/transactions/renew-lease.ts';
import { examine } from '../../doctor/examine.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import {
  claimedStart,
  migratingInstance,
  newAttempt,
  type SagaAttempt,
  startedInstance,
  unwindError,
} from '../support/saga-steps.ts';

const LEASE_MS = 30_000;

let database: TestDatabase;
let here: string;
let there: string;
let project: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.stop());
beforeEach(async () => {
  await database.clear();
  await database.db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp()`);
  await database.db.execute(sql`DELETE FROM lease_service_gap`);
  project = await database.addProject();
  here = await database.addSled();
  there = await database.addSled();
});

/** Has a sled whose agent keeps this id, or none. */
async function keeps(sledId: string, agentId: string | null, identified = false): Promise<void> {
  await database.db.update(sled).set({ agentId, keptAgentId: agentId, identified }).where(eq(sled.id, sledId));
}

function renew(sledId: string, changes: Partial<Parameters<typeof renewLease>[1]> = {}): Promise<Renewal> {
  return renewLease(database.db, { sledId, leaseMs: LEASE_MS, held: true, epoch: null, livingVmmIds: [], ...changes });
}

async function row(sledId: string) {
  const [found] = await database.db.select().from(sled).where(eq(sled.id, sledId));
  if (found === undefined) throw new Error(`no sled ${sledId}`);
  return found;
}

/** As if the last renewal had come so many milliseconds ago. */
async function silentFor(sledId: string, ms: number): Promise<void> {
  await database.db.execute(sql`UPDATE sled SET lease_renewed_at = clock_timestamp() - ${ms}::float8 * interval '1 millisecond',
    lease_confirmed_at = clock_timestamp() - ${ms}::float8 * interval '1 millisecond' WHERE id = ${sledId}`);
}

/** As if the control plane had been away, from so long ago to so long ago, in milliseconds. */
async function away(fromMs: number, toMs: number): Promise<void> {
  await database.db.execute(sql`INSERT INTO lease_service_gap (began_at, ended_at)
    VALUES (clock_timestamp() - ${fromMs}::float8 * interval '1 millisecond', clock_timestamp() - ${toMs}::float8 * interval '1 millisecond')`);
}

async function startedOn(sledId: string): Promise<SagaAttempt> {
  const other = sledId === here ? there : here;
  await database.db.update(sled).set({ policy: 'no_provision' }).where(eq(sled.id, other));
  const started = await startedInstance(database.db, await database.addInstance(project));
  await database.db.update(sled).set({ policy: 'in_service' }).where(eq(sled.id, other));
  return started;
}

async function vmmRow(id: string) {
  const [found] = await database.db.select().from(vmm).where(eq(vmm.id, id));
  return found;
}

async function findings(): Promise<string[]> {
  const { findings: found } = await examine({ db: database.db, atRest: false, journal: 'required' });
  return found.map(({ message }) => message);
}

describe('a renewal', () => {
  test('gives a lease from the moment of its receipt, and makes the sled one with fencing', async () => {
    expect((await row(here)).leaseMs).toBeNull();
    expect(await renew(here)).toEqual({ outcome: 'granted', epoch: 0, returned: false });
    const { leaseMs, leaseRenewedAt, fencingSince } = await row(here);
    expect(leaseMs).toBe(LEASE_MS);
    expect(fencingSince).not.toBeNull();
    await renew(here);
    const later = await row(here);
    expect(later.leaseRenewedAt?.getTime()).toBeGreaterThanOrEqual(leaseRenewedAt?.getTime() ?? 0);
    expect(later.fencingSince).toEqual(fencingSince);
  });

  test('with a shorter lease takes nothing away from the longer one', async () => {
    await renew(here, { leaseMs: 600_000 });
    const { leaseRenewedAt } = await row(here);
    expect(await renew(here, { leaseMs: 15_000 })).toMatchObject({ outcome: 'granted' });
    expect(await row(here)).toMatchObject({ leaseMs: 600_000, leaseRenewedAt });
    await silentFor(here, 595_000);
    await renew(here, { leaseMs: 15_000 });
    expect(await row(here)).toMatchObject({ leaseMs: 15_000 });
  });

  test('of an unknown or an expunged sled is refused', async () => {
    expect(await renew(randomUUID())).toEqual({ outcome: 'unknown' });
    await renew(here);
    await expungeSled(database.db, here);
    expect(await renew(here)).toMatchObject({ outcome: 'expunged' });
  });
});

describe('the verdict', () => {
  test('fails what lives on the sled, with its sides of migrations, and nothing elsewhere', async () => {
    const lost = await startedOn(here);
    const leaving = await startedOn(here);
    const coming = await startedOn(there);
    const spared = await startedOn(there);
    const out = await migratingInstance(database.db, leaving, there);
    const into = await migratingInstance(database.db, coming, here);
    await renew(here);
    await silentFor(here, LEASE_MS * 1.5 - 2_000);
    expect(await judgeLease(database.db, here)).toEqual({ standing: 'lapsed', declaration: null });
    await silentFor(here, LEASE_MS * 1.5);
    const judged = await judgeLease(database.db, here);
    expect(judged?.standing).toBe('dead');
    expect([...(judged?.declaration?.failed ?? [])].sort()).toEqual([lost.vmmId, leaving.vmmId, into.vmmId].sort());
    expect(await row(here)).toMatchObject({ declaredDeadBy: 'lease', leaseEpoch: 1 });
    expect((await vmmRow(lost.vmmId))?.failureReason).toMatch(/did not renew its lease for 45 s/);
    expect((await vmmRow(spared.vmmId))?.state).toBe('running');
    expect((await vmmRow(out.vmmId))?.state).not.toBe('failed');
    const sides = async (id: string) => {
      const [found] = await database.db.select().from(migration).where(eq(migration.id, id));
      return [found?.sourceState, found?.targetState];
    };
    expect((await sides(out.migrationId))[0]).toBe('failed');
    expect((await sides(out.migrationId))[1]).not.toBe('failed');
    expect((await sides(into.migrationId))[1]).toBe('failed');
    expect(await judgeLease(database.db, here), 'a second time').toBeNull();
    for (const { instanceId } of [lost, leaving, coming]) await commitUpdate(database.db, instanceId);
    expect((await readInstance(database.db, lost.instanceId))?.externalState).toBe('failed');
    expect((await readInstance(database.db, coming.instanceId))?.instance).toMatchObject({
      state: 'vmm',
      activeVmmId: coming.vmmId,
      targetVmmId: null,
    });
    expect(await findings()).toEqual([]);
  });

  test.each([
    [
      'nobody can take a renewal at the moment',
      async () => {
        await database.db.execute(
          sql`UPDATE lease_service SET last_beat_at = clock_timestamp() - interval '6 seconds'`,
        );
      },
    ],
    ['nobody could until a moment ago', () => away(60_000, 5_000)],
    ['nobody could for a part of lease and margin', () => away(50_000, 44_000)],
    [
      'the clock went back',
      async () => {
        await database.db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp() + interval '1 hour'`);
      },
    ],
  ] as const)('is not given while %s', async (_, befall) => {
    await renew(here);
    await silentFor(here, 10 * LEASE_MS);
    await befall();
    expect(await judgeLease(database.db, here)).toEqual({ standing: 'unattended', declaration: null });
    expect((await row(here)).timeDeclaredDead).toBeNull();
  });

  test('is given when the control plane has been back for lease and margin', async () => {
    await renew(here);
    await silentFor(here, 10 * LEASE_MS);
    await away(200_000, 46_000);
    expect((await judgeLease(database.db, here))?.standing).toBe('dead');
  });

  test('waits for a renewal that is being written, and sees it', async () => {
    await renew(here);
    await silentFor(here, 10 * LEASE_MS);
    let judging: ReturnType<typeof judgeLease> | undefined;
    await database.db.transaction(async (transaction) => {
      await transaction.execute(
        sql`/* renew-lease */ UPDATE sled SET lease_renewed_at = clock_timestamp() WHERE id = ${here}`,
      );
      judging = judgeLease(database.db, here);
      await blockedByAnother();
    });
    expect(await judging).toEqual({ standing: 'held', declaration: null });
  });

  test('comes before a renewal that waits for it, which is then refused', async () => {
    await renew(here);
    await silentFor(here, 10 * LEASE_MS);
    let renewing: Promise<Renewal> | undefined;
    await database.db.transaction(async (transaction) => {
      await transaction.execute(
        sql`/* declare-dead */ UPDATE sled SET time_declared_dead = now(), declared_dead_by = 'lease', lease_epoch = 1 WHERE id = ${here}`,
      );
      renewing = renew(here);
      await blockedByAnother();
    });
    expect(await renewing).toEqual({ outcome: 'declared-dead', epoch: 1, lostVmmIds: [] });
  });

  test('is never given of a sled without fencing, an expunged one, or none', async () => {
    await startedOn(here);
    expect(await judgeLease(database.db, here)).toBeNull();
    expect(await judgeLease(database.db, randomUUID())).toBeNull();
    await renew(there);
    await silentFor(there, 10 * LEASE_MS);
    await expungeSled(database.db, there);
    expect(await judgeLease(database.db, there)).toBeNull();
  });

  /** Waits until another connection waits for a lock. */
  async function blockedByAnother(): Promise<void> {
    for (;;) {
      const waiting = await database.db.execute(
        sql`SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`,
      );
      if (waiting.rows.length > 0) return;
    }
  }
});

describe('a sled that was declared dead', () => {
  let lost: SagaAttempt;
  beforeEach(async () => {
    lost = await startedOn(here);
    await renew(here);
    await silentFor(here, 10 * LEASE_MS);
    await judgeLease(database.db, here);
  });

  test('renews in vain until it names the epoch and reports nothing that it lost', async () => {
    expect(await renew(here)).toEqual({ outcome: 'declared-dead', epoch: 1, lostVmmIds: [] });
    expect(await renew(here, { epoch: 0 }), 'composed before').toMatchObject({ outcome: 'declared-dead' });
    expect(await renew(here, { epoch: 1, livingVmmIds: [lost.vmmId] })).toEqual({
      outcome: 'declared-dead',
      epoch: 1,
      lostVmmIds: [lost.vmmId],
    });
    const stranger = randomUUID();
    expect(await renew(here, { epoch: 1, livingVmmIds: [stranger] })).toMatchObject({ lostVmmIds: [stranger] });
    expect((await row(here)).timeDeclaredDead).not.toBeNull();
    expect(await renew(here, { epoch: 1 })).toEqual({ outcome: 'granted', epoch: 1, returned: true });
    expect(await row(here)).toMatchObject({ timeDeclaredDead: null, declaredDeadBy: null, leaseEpoch: 1 });
    expect(await judgeLease(database.db, here)).toEqual({ standing: 'held', declaration: null });
  });

  test('takes no reservation, not even from a claim that had picked it before', async () => {
    const placed = { instanceId: randomUUID(), ncpus: 1, memoryBytes: 1024 };
    expect((await pickSled(database.db, placed))?.id).toBe(there);
    await database.db.update(sled).set({ policy: 'no_provision' }).where(eq(sled.id, there));
    expect(await pickSled(database.db, placed)).toBeNull();
    expect(await explainNoSled(database.db, placed)).toMatch(/dead, late/);
    await commitUpdate(database.db, lost.instanceId);
    const refusal =
      database.db.execute(sql`INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
      VALUES (${lost.vmmId}, ${await database.addInstance(project)}, ${here}, 1, 1, 'target')`);
    await expect(refusal).rejects.toMatchObject({ cause: { constraint: 'sled_in_service' } });
  });
});

test('an unwind that waits for a sled waits no more when it is declared dead, and releases all', async () => {
  await renew(here);
  await database.db.update(sled).set({ policy: 'no_provision' }).where(eq(sled.id, there));
  const attempt = newAttempt('start', await database.addInstance(project));
  await claimedStart(database.db, attempt);
  await beginUnwind(database.db, { ...attempt, spareRunning: false });
  expect((await readVmmPlace(database.db, attempt.vmmId))?.givenUp).toBe(false);
  await silentFor(here, 10 * LEASE_MS);
  expect((await judgeLease(database.db, here))?.declaration?.failed).toEqual([]);
  expect((await readVmmPlace(database.db, attempt.vmmId))?.givenUp).toBe(true);
  const error = unwindError('its sled was silent');
  await finishUnwind(database.db, { ...attempt, confirmed: false, neverCommanded: true, error });
  const held = await database.db.execute(sql`SELECT 1 FROM sled_reservation WHERE vmm_id = ${attempt.vmmId}`);
  expect(held.rows).toEqual([]);
  expect(await findings()).toEqual([]);
});

describe('placement', () => {
  const placed = () => pickSled(database.db, { instanceId: randomUUID(), ncpus: 1, memoryBytes: 1024 });
  beforeEach(() => database.db.update(sled).set({ policy: 'no_provision' }).where(eq(sled.id, there)));

  test('passes over a sled that missed two renewals, or that doesn’t know of its lease', async () => {
    expect((await placed())?.id, 'without fencing').toBe(here);
    await renew(here, { held: false });
    expect(await placed(), 'not sure of it yet').toBeNull();
    await renew(here);
    expect((await placed())?.id).toBe(here);
    await silentFor(here, LEASE_MS * 0.6);
    expect((await placed())?.id).toBe(here);
    await silentFor(here, LEASE_MS * 0.7);
    expect(await placed(), 'late').toBeNull();
    await renew(here);
    expect((await placed())?.id).toBe(here);
  });

  test('a sled that has never held its lease is no destination, and counts as late where nobody takes an instance', async () => {
    await renew(here, { held: false });
    const request = { instanceId: await database.addInstance(project), ncpus: 1, memoryBytes: 1024 };
    expect(await readDestination(database.db, here, request)).toMatchObject({ takesVmms: false });
    expect(await explainNoSled(database.db, request)).toMatch(/1 of them dead, late/);
  });

  test('a start says why no sled takes it', async () => {
    await renew(here);
    await silentFor(here, LEASE_MS);
    const attempt = newAttempt('start', await database.addInstance(project));
    await expect(claimStart(database.db, { ...attempt, reason: 'user' })).rejects.toThrow(
      /no sled takes instances \(1 of them dead, late/,
    );
  });
});

describe('the control plane’s own presence', () => {
  const gaps = async () =>
    (await database.db.execute(sql`SELECT began_at, ended_at FROM lease_service_gap`)).rows.length;

  test('a beat that comes in time leaves no gap, a late one does', async () => {
    await beatLeaseService(database.db, 1_000);
    expect(await gaps()).toBe(0);
    await database.db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp() - interval '2 seconds'`);
    await beatLeaseService(database.db, 1_000);
    expect(await gaps()).toBe(1);
    await beatLeaseService(database.db, 1_000);
    expect(await gaps()).toBe(1);
  });

  test('many APIs beat at once: one gap is one gap', async () => {
    await database.db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp() - interval '1 minute'`);
    await Promise.all(Array.from({ length: 24 }, () => beatLeaseService(database.db, 30_000)));
    expect(await gaps()).toBe(1);
  });

  test('when the clock goes back every lease begins anew, by the clock that counts from then on', async () => {
    await renew(here);
    // As if the clock had stood an hour ahead of now.
    await database.db.execute(sql`UPDATE lease_service SET last_beat_at = clock_timestamp() + interval '1 hour'`);
    await database.db.execute(
      sql`UPDATE sled SET lease_renewed_at = clock_timestamp() + interval '59 minutes' WHERE id = ${here}`,
    );
    await away(-3_500_000, -3_560_000);
    await beatLeaseService(database.db, 1_000);
    const { leaseRenewedAt } = await row(here);
    const { rows } =
      await database.db.execute(sql`SELECT ${leaseRenewedAt?.toISOString()}::timestamptz <= clock_timestamp() AS past,
      (SELECT bool_and(ended_at <= clock_timestamp()) FROM lease_service_gap) AS all_past`);
    expect(rows[0]).toEqual({ past: true, all_past: true });
    expect(await gaps()).toBe(2);
    await silentFor(here, LEASE_MS * 1.4);
    expect(await judgeLease(database.db, here)).toMatchObject({ declaration: null });
  });

  test('gaps that no lease depends on are forgotten', async () => {
    await away(10_000_000, 9_000_000);
    await away(10_000, 9_000);
    expect(await forgetOldGaps(database.db, 8_000_000)).toBe(1);
    expect(await gaps()).toBe(1);
  });
});

describe('an operator’s confirmation', () => {
  test('fails what lives on a sled without fencing, once; its inventory takes it back', async () => {
    const lost = await startedOn(here);
    expect(await declareSledDead(database.db, here)).toMatchObject({
      failed: [lost.vmmId],
      instanceIds: [lost.instanceId],
    });
    expect(await declareSledDead(database.db, here)).toEqual({ failed: [], instanceIds: [] });
    expect(await row(here)).toMatchObject({ declaredDeadBy: 'operator', leaseEpoch: 1 });
    expect(await returnDeadSled(database.db, here, [lost.vmmId])).toEqual([lost.vmmId]);
    expect((await row(here)).timeDeclaredDead).not.toBeNull();
    expect(await returnDeadSled(database.db, here, [])).toEqual([]);
    expect((await row(here)).timeDeclaredDead).toBeNull();
  });

  test('waits for the lease of a sled that may hold it: nothing is written until that has lapsed', async () => {
    const kept = await startedOn(here);
    await renew(here);
    for (const silentMs of [0, LEASE_MS * 0.9, LEASE_MS * 1.4]) {
      await silentFor(here, silentMs);
      expect(await declareSledDead(database.db, here)).toEqual({ failed: [], instanceIds: [] });
      expect(await row(here)).toMatchObject({ timeDeclaredDead: null, leaseEpoch: 0 });
      expect((await vmmRow(kept.vmmId))?.state).not.toBe('failed');
    }
    // It was wrong, and the sled comes back: nothing has happened.
    expect(await renew(here, { livingVmmIds: [kept.vmmId] })).toMatchObject({ outcome: 'granted', returned: false });
    await silentFor(here, LEASE_MS * 1.6);
    expect(await declareSledDead(database.db, here)).toMatchObject({ failed: [kept.vmmId] });
  });

  test('that a sled is gone takes it out of service at once; its VMMs are failed when its lease has lapsed', async () => {
    const lost = await startedOn(here);
    await renew(here);
    const said = { answers: false, poweredOff: true };
    await expect(expungeSled(database.db, here, { ...said, poweredOff: false })).rejects.toThrow(/lease/);
    expect(await expungeSled(database.db, here, said)).toEqual({ awaits: 'lease', failed: [], instanceIds: [] });
    expect(await renew(here, { livingVmmIds: [lost.vmmId] })).toMatchObject({ outcome: 'expunged' });
    for (const silentMs of [0, LEASE_MS * 0.9, LEASE_MS * 1.4]) {
      await silentFor(here, silentMs);
      expect(await settleExpunge(database.db, here)).toBeNull();
      expect(await judgeLease(database.db, here)).toBeNull();
      expect(await expungeSled(database.db, here, said)).toMatchObject({ awaits: 'lease' });
      expect((await vmmRow(lost.vmmId))?.state).not.toBe('failed');
      expect(await findings()).toEqual([]);
    }
    await silentFor(here, LEASE_MS * 1.6);
    expect(await settleExpunge(database.db, here)).toMatchObject({ failed: [lost.vmmId] });
    expect(await row(here)).toMatchObject({ policy: 'expunged' });
    expect(await settleExpunge(database.db, here)).toBeNull();
    expect(await findings()).toEqual([]);
  });

  test('about a sled whose control plane was away is good for nothing until that is made up for', async () => {
    const kept = await startedOn(here);
    await renew(here);
    await silentFor(here, LEASE_MS * 3);
    await away(LEASE_MS * 2.9, LEASE_MS * 0.5);
    expect(await expungeSled(database.db, here, { answers: false, poweredOff: true })).toMatchObject({
      awaits: 'lease',
    });
    expect(await settleExpunge(database.db, here)).toBeNull();
    expect((await vmmRow(kept.vmmId))?.state).not.toBe('failed');
  });

  test('about a sled that answers fails nothing: what lives there ends by its sled’s own word', async () => {
    const told = await startedOn(here);
    expect(await expungeSled(database.db, here, { answers: true, poweredOff: true })).toMatchObject({ awaits: 'sled' });
    expect(await settleExpunge(database.db, here)).toBeNull();
    expect((await readVmmPlace(database.db, told.vmmId))?.givenUp).toBe(false);
    await failVmm(database.db, told.vmmId, 'its sled has ended it');
    expect(await settleExpunge(database.db, here)).toMatchObject({ awaits: null });
    expect(await row(here)).toMatchObject({ policy: 'expunged' });
  });

  test('is not taken of a sled that is not there or expunged', async () => {
    await expect(declareSledDead(database.db, randomUUID())).rejects.toMatchObject({ code: 'NotFound' });
    await expungeSled(database.db, here);
    await expect(declareSledDead(database.db, here)).rejects.toMatchObject({ code: 'Conflict' });
  });
});

describe('an agent that is not the sled’s own', () => {
  const own = randomUUID();
  const SAID = { own, 'own, in upper case': own.toUpperCase(), another: randomUUID(), 'no id': 'text', nothing: null };
  const cells = (Object.keys(SAID) as (keyof typeof SAID)[]).flatMap((who) =>
    [own, null].flatMap((kept) =>
      [false, true].flatMap((identified) =>
        (['nothing', 'claimed', 'running', 'gone'] as const).flatMap((lives) =>
          [false, true].map((dead) => ({ who, kept, identified, lives, dead })),
        ),
      ),
    ),
  );

  test('renews no lease while VMMs live there, in every case; whoever doesn’t say who it is renews as before', async () => {
    for (const cell of cells) {
      const { who, kept, identified, lives, dead } = cell;
      const sledId = await database.addSled();
      await keeps(sledId, kept, identified);
      await database.db.execute(
        sql`UPDATE sled SET policy = CASE WHEN id = ${sledId} THEN 'in_service' ELSE 'no_provision' END::sled_policy`,
      );
      if (lives === 'claimed')
        await claimedStart(database.db, newAttempt('start', await database.addInstance(project)));
      else if (lives !== 'nothing') {
        const { vmmId } = await startedInstance(database.db, await database.addInstance(project));
        if (lives === 'gone') await failVmm(database.db, vmmId, 'gone');
      }
      if (dead)
        await database.db.execute(
          sql`UPDATE sled SET time_declared_dead = now(), declared_dead_by = 'operator', lease_epoch = lease_epoch + 1 WHERE id = ${sledId}`,
        );
      const isForeign =
        kept !== null &&
        !identified &&
        (who === 'another' || who === 'no id') &&
        (lives === 'claimed' || lives === 'running');
      const before = await row(sledId);
      const { outcome } = await renew(sledId, { agentId: SAID[who], epoch: before.leaseEpoch });
      expect([cell, outcome]).toEqual([cell, isForeign ? 'foreign-agent' : 'granted']);
      if (isForeign) expect(await row(sledId)).toEqual(before);
      await keeps(sledId, null);
    }
  });

  test('lets the lease lapse: its guests are lost then, and the sled is judged dead', async () => {
    const { vmmId } = await startedOn(here);
    await keeps(here, own);
    expect((await renew(here, { agentId: own, livingVmmIds: [vmmId] })).outcome).toBe('granted');
    await silentFor(here, 10 * LEASE_MS);
    expect((await renew(here, { agentId: randomUUID() })).outcome).toBe('foreign-agent');
    expect((await judgeLease(database.db, here))?.standing).toBe('dead');
    expect((await readVmmPlace(database.db, vmmId))?.givenUp).toBe(true);
    // Nothing of the former one's is left: the sled may have another agent from now on.
    const epoch = (await row(here)).leaseEpoch;
    expect((await renew(here, { agentId: randomUUID(), epoch })).outcome).toBe('granted');
  });
});
