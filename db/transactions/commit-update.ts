import { type SQL, sql } from 'drizzle-orm';
import {
  decideUpdate,
  type UpdateCase,
  type UpdateDecision,
  updateCase,
  writesAnything,
} from '../../model/update-decision.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { network } from '../network.ts';
import { type GenerationSnapshot, readSnapshot } from '../queries/read-snapshot.ts';

/** More rounds than any decision leads to: one that contradicts itself must not hold its locks for ever. */
const MAX_ROUNDS = 8;

/** A round that wrote something. */
export interface UpdateRound {
  readonly case: UpdateCase;
  /** How old the newest fact was that it followed, in seconds; `null` when the instance named none. */
  readonly factAgeSeconds: number | null;
}

export interface CommittedUpdate {
  /** What was written, in order; empty when nothing was to be written. */
  readonly rounds: readonly UpdateRound[];
  /** The rule that applies to what is stored now. */
  readonly case: UpdateCase;
  /** What is left to be done on sleds. */
  readonly left: Pick<UpdateDecision, 'unregister' | 'carryStop' | 'ask'>;
}

/**
 * One update: locks what the decisions rest on; then reads a snapshot, decides, and writes all that follows, until a
 * fresh snapshot needs nothing; all in one transaction, each write guarded by the instance's generation. **The only code
 * that sets an instance's ids to NULL.** Returns `null` when there is no such instance.
 *
 * Under its locks nobody but itself changes what it reads, so it ends after a round or two. At the bound of its rounds it
 * commits what it has written; the updater's next pass finds what is left.
 */
export async function commitUpdate(db: Database, instanceId: string): Promise<CommittedUpdate | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      await lock(transaction, instanceId);
      const rounds: UpdateRound[] = [];
      for (;;) {
        const snapshot = await readSnapshot(transaction, instanceId);
        if (snapshot === null) return null;
        const [decision, rule] = [decideUpdate(snapshot), updateCase(snapshot)];
        if (!writesAnything(decision) || rounds.length === MAX_ROUNDS) return { rounds, case: rule, left: decision };
        await write(transaction, instanceId, snapshot, decision);
        rounds.push({ case: rule, factAgeSeconds: snapshot.factAgeSeconds });
      }
    }),
  );
}

/**
 * Locks the instance, its VMMs and its migration. The instance by a statement of its own: what a claim committed while
 * that waited is seen only by a statement that begins afterwards. The migration after the VMMs, in the order of a report,
 * so that the two can't wait for each other.
 */
async function lock(transaction: Queryable, instanceId: string): Promise<void> {
  await transaction.execute(sql`/* commit-update */ SELECT 1 FROM instance WHERE id = ${instanceId} FOR UPDATE`);
  await transaction.execute(sql`/* commit-update */
    WITH vmms AS MATERIALIZED (
      SELECT id FROM vmm WHERE instance_id = ${instanceId} AND time_deleted IS NULL ORDER BY id FOR UPDATE
    )
    SELECT 1 FROM migration
    WHERE id = (SELECT migration_id FROM instance WHERE id = ${instanceId}) AND (SELECT count(*) FROM vmms) >= 0
    FOR UPDATE`);
}

/**
 * Writes what a decision says, in one statement. Parts that must follow one another count what the earlier one did: the
 * new active reservation comes after the old one, since an instance has one of each kind at most; the charge comes after
 * the reservations, so that the rows of sleds are locked before the project's.
 */
async function write(
  transaction: Queryable,
  instanceId: string,
  snapshot: GenerationSnapshot,
  decision: UpdateDecision,
): Promise<void> {
  const { instance: next, tombstone, retire, activateReservation } = decision;
  const result = await transaction.execute(sql`/* commit-update */
    WITH guarded AS (
      SELECT id FROM instance
      WHERE id = ${instanceId} AND state_generation = ${snapshot.generation} AND intended_state = ${snapshot.intendedState}
    ), changed AS (
      UPDATE instance SET intended_state = coalesce(${decision.intendedState}::intended_state, intended_state)
        ${next === null ? sql`` : follow(next)}
      FROM guarded
      WHERE instance.id = guarded.id AND ${next !== null || decision.intendedState !== null}
      RETURNING instance.id
    ), networked AS (
      -- In the same statement: an instance that moved is reached where it is, one that ended nowhere.
      ${
        next?.activeVmmId === null
          ? network.remove(sql`SELECT id AS instance_id, NULL::uuid AS vmm_id FROM changed`)
          : network.ensure(sql`
              SELECT changed.id AS instance_id, sled_id, vmm.id AS vmm_id, ip, port
              FROM changed JOIN vmm ON vmm.id = ${next?.activeVmmId ?? null} AND vmm.state <> 'saga_unwound'`)
      }
    ), tombstoned AS (
      UPDATE sled_reservation SET kind = 'tombstoned' FROM guarded
      WHERE vmm_id = ANY(${sql.param(tombstone)}::uuid[])
      RETURNING vmm_id
    ), released AS (
      DELETE FROM sled_reservation USING guarded WHERE vmm_id = ANY(${sql.param(retire)}::uuid[])
      RETURNING vmm_id
    ), deleted AS (
      UPDATE vmm SET time_deleted = now() FROM guarded
      WHERE vmm.id = ANY(${sql.param(retire)}::uuid[]) AND time_deleted IS NULL
    ), activated AS (
      UPDATE sled_reservation SET kind = 'active' FROM guarded
      WHERE vmm_id = ${activateReservation} AND (SELECT count(*) FROM tombstoned) + (SELECT count(*) FROM released) >= 0
    ), refunded AS (
      DELETE FROM provisioning_charge USING guarded
      WHERE instance_id = guarded.id AND ${decision.releaseCharge} AND (SELECT count(*) FROM released) >= 0
    )
    SELECT id FROM guarded`);
  if (result.rows.length !== 1) throw new Error(`instance ${instanceId} changed under its lock`);
}

/** The part that makes an instance's record follow; its generation rises by one. */
function follow({ state, activeVmmId, targetVmmId, migrationId }: NonNullable<UpdateDecision['instance']>): SQL {
  return sql`, state = ${state}, active_vmm_id = ${activeVmmId}, target_vmm_id = ${targetVmmId},
        migration_id = ${migrationId}, state_generation = state_generation + 1, time_state_updated = now()`;
}
