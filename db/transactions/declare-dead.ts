/** The two ways in which a sled is declared dead, each in one transaction, and how one without fencing comes back. */
import { sql } from 'drizzle-orm';
import { type LeaseStanding, leaseStanding } from '../../model/lease.ts';
import { explainRefusal, judgeWord } from '../../model/operator-word.ts';
import { Refusal } from '../../model/refusal.ts';
import type { DeathCause } from '../../model/states.ts';
import { type AutomaticAction, automaticRecord } from '../audit-record.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { readLeaseFacts } from '../queries/read-lease-facts.ts';
import { readSledFacts } from '../queries/read-sled-facts.ts';
import { failSledVmms } from './fail-sled.ts';
import { lostAmong, returnSled } from './renew-lease.ts';
import { writeAudit } from './write-audit.ts';

/** What was written when a sled was declared dead. */
export interface Declaration {
  /** The VMMs that are Failed now. */
  readonly failed: readonly string[];
  /** The instances whose records may need an update. */
  readonly instanceIds: readonly string[];
}

/**
 * Judges a sled's lease under the lock of its row: no renewal can come between the verdict and what follows from it. Where
 * lease and margin have passed while the control plane could have taken a renewal, the sled is declared dead. Returns how
 * the lease stands, with the declaration where it is `dead`; `null` for a sled that there is nothing to judge of.
 */
export async function judgeLease(
  db: Database,
  sledId: string,
  by: Actor | null = null,
): Promise<{ standing: LeaseStanding; declaration: Declaration | null } | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(sql`/* declare-dead */
        SELECT time_declared_dead IS NOT NULL OR expunging_since IS NOT NULL AS judged FROM sled WHERE id = ${sledId} FOR UPDATE`);
      const facts = await readLeaseFacts(transaction, sledId);
      if (facts === null || found.rows[0]?.judged === true) return null;
      const standing = leaseStanding(facts);
      if (standing !== 'dead') return { standing, declaration: null };
      const silentSeconds = Math.round((facts.nowMs - facts.renewedMs) / 1000);
      const reason = `its sled did not renew its lease for ${silentSeconds} s, so its guests are off`;
      const declaration = await declare(transaction, sledId, 'lease', reason);
      await recordSledAction(transaction, 'sled_declare_dead', sledId, by);
      return { standing, declaration };
    }),
  );
}

/**
 * Declares a sled dead, as an operator states that nothing runs on it; `answers`: it does, so that this is not believed. A
 * second time it does nothing more. Where the sled may hold a lease nothing is written: when that has lapsed it is declared
 * dead by {@link judgeLease}, and if the operator was wrong it renews. Throws a {@link Refusal} for a sled that is not there,
 * is expunged, or answers.
 */
export async function declareSledDead(
  db: Database,
  sledId: string,
  { answers, poweredOff }: { readonly answers: boolean; readonly poweredOff: boolean } = SILENT_AND_OFF,
): Promise<Declaration> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const found = await transaction.execute(
        sql`/* declare-dead */ SELECT name, policy, time_declared_dead, expunging_since FROM sled WHERE id = ${sledId} FOR UPDATE`,
      );
      const row = found.rows[0];
      if (row === undefined) throw Refusal.notFound('sled', sledId);
      if (row.policy === 'expunged' || row.expunging_since !== null)
        throw Refusal.conflict(`sled "${row.name}" was expunged: it is given up for good already`);
      const facts = { answers, ...(await readSledFacts(transaction, sledId)) };
      const judged = judgeWord('declare-dead', facts, poweredOff);
      if (judged.verdict === 'refuse')
        throw Refusal.conflict(explainRefusal('declare-dead', String(row.name), judged.why));
      if (row.time_declared_dead !== null || judged.verdict !== 'at once') return { failed: [], instanceIds: [] };
      return declare(transaction, sledId, 'operator', 'an operator declared its sled dead');
    }),
  );
}

/** What a word is about where nothing else is said: a sled that is silent, and powered off as an operator states. */
export const SILENT_AND_OFF = { answers: false, poweredOff: true } as const;

/** Who acts by itself, for the audit log. */
export type Actor = Pick<AutomaticAction, 'actorName' | 'runId' | 'workflowId'>;

/** Writes down what was done to a sled by itself, where `by` says who did it. */
export async function recordSledAction(
  transaction: Queryable,
  operation: string,
  sledId: string,
  by: Actor | null,
): Promise<void> {
  if (by === null) return;
  const action = { operation, subjectKind: 'sled' as const, subject: sledId, ...by };
  await writeAudit(transaction, automaticRecord(action, { result: 'success', httpStatus: null }));
}

/** The one place where a sled whose row is locked becomes dead, for whatever cause. */
async function declare(
  transaction: Queryable,
  sledId: string,
  cause: DeathCause,
  reason: string,
): Promise<Declaration> {
  await transaction.execute(sql`/* declare-dead */
    UPDATE sled SET time_declared_dead = now(), declared_dead_by = ${cause}, lease_epoch = lease_epoch + 1, time_modified = now()
    WHERE id = ${sledId}`);
  // Whoever waits for this sled's answer about a VMM waits no more, also after the sled has come back.
  await transaction.execute(sql`/* declare-dead */
    UPDATE vmm SET vouched_gone_at = coalesce(vouched_gone_at, now()) WHERE sled_id = ${sledId} AND time_deleted IS NULL`);
  return failSledVmms(transaction, { by: 'declare-dead', sledId, reason });
}

/**
 * Takes a sled without fencing that was declared dead back into service, when none of the VMMs that it reports is
 * lost. Returns those that are; an empty list means that it is in service.
 */
export async function returnDeadSled(
  db: Database,
  sledId: string,
  livingVmmIds: readonly string[],
  by: Actor | null = null,
): Promise<string[]> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      await transaction.execute(sql`/* declare-dead */ SELECT 1 FROM sled WHERE id = ${sledId} FOR UPDATE`);
      const lost = await lostAmong(transaction, sledId, livingVmmIds);
      if (lost.length === 0) {
        await returnSled(transaction, sledId);
        await recordSledAction(transaction, 'sled_return', sledId, by);
      }
      return lost;
    }),
  );
}
