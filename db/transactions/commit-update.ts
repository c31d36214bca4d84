import { sql } from 'drizzle-orm';
import { decideUpdate, type UpdateCase, type UpdateDecision, updateCase } from '../../model/update-decision.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { network } from '../network.ts';
import { type GenerationSnapshot, readSnapshot } from '../queries/read-snapshot.ts';

export interface CommittedUpdate {
  readonly case: UpdateCase;
  readonly decision: UpdateDecision;
  readonly changed: boolean;
  readonly snapshot: GenerationSnapshot;
}

/**
 * One update: locks what the decision rests on, reads a snapshot, decides, and writes all that follows, in one
 * transaction, guarded by the instance's generation. **The only code that sets an instance's ids to NULL.** Returns
 * `null` when there is no such instance.
 */
export async function commitUpdate(db: Database, instanceId: string): Promise<CommittedUpdate | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      // The same order as a report (VMM, then migration), so that the two can't wait for each other.
      await transaction.execute(sql`/* commit-update */ SELECT 1 FROM instance WHERE id = ${instanceId} FOR UPDATE`);
      await transaction.execute(
        sql`/* commit-update */ SELECT 1 FROM vmm WHERE instance_id = ${instanceId} AND time_deleted IS NULL ORDER BY id FOR UPDATE`,
      );
      await transaction.execute(
        sql`/* commit-update */ SELECT 1 FROM migration WHERE id = (SELECT migration_id FROM instance WHERE id = ${instanceId}) FOR UPDATE`,
      );
      const snapshot = await readSnapshot(transaction, instanceId);
      if (snapshot === null) return null;
      const decision = decideUpdate(snapshot);
      const changed = await write(transaction, instanceId, snapshot, decision);
      return { case: updateCase(snapshot), decision, changed, snapshot };
    }),
  );
}

async function write(
  transaction: Queryable,
  instanceId: string,
  snapshot: GenerationSnapshot,
  decision: UpdateDecision,
): Promise<boolean> {
  let changed = false;
  if (decision.instance !== null) {
    const { state, activeVmmId, targetVmmId, migrationId } = decision.instance;
    // The network follows in the same statement: an instance that moved is reached where it is, one that ended nowhere.
    const result = await transaction.execute(sql`/* commit-update */
      WITH changed AS (
        UPDATE instance SET state = ${state}, active_vmm_id = ${activeVmmId}, target_vmm_id = ${targetVmmId},
          migration_id = ${migrationId}, state_generation = state_generation + 1, time_state_updated = now()
        WHERE id = ${instanceId} AND state_generation = ${snapshot.generation}
        RETURNING id
      ), networked AS (
        ${
          activeVmmId === null
            ? network.remove(sql`SELECT id AS instance_id, NULL::uuid AS vmm_id FROM changed`)
            : network.ensure(sql`
                SELECT changed.id AS instance_id, sled_id, vmm.id AS vmm_id, ip, port
                FROM changed JOIN vmm ON vmm.id = ${activeVmmId} AND vmm.state <> 'saga_unwound'`)
        }
      )
      SELECT id FROM changed`);
    if (result.rows.length !== 1) throw new Error(`instance ${instanceId} changed under its lock`);
    changed = true;
  }
  if (decision.intendedState !== null) {
    await transaction.execute(sql`/* commit-update */
      UPDATE instance SET intended_state = ${decision.intendedState}
      WHERE id = ${instanceId} AND intended_state = ${snapshot.intendedState}`);
    changed = true;
  }
  // Before the new active reservation: an instance has one of each kind at most.
  for (const vmmId of decision.tombstone) {
    await transaction.execute(
      sql`/* commit-update */ UPDATE sled_reservation SET kind = 'tombstoned' WHERE vmm_id = ${vmmId}`,
    );
    changed = true;
  }
  for (const vmmId of decision.retire) {
    await transaction.execute(sql`/* commit-update */ DELETE FROM sled_reservation WHERE vmm_id = ${vmmId}`);
    await transaction.execute(
      sql`/* commit-update */ UPDATE vmm SET time_deleted = now() WHERE id = ${vmmId} AND time_deleted IS NULL`,
    );
    changed = true;
  }
  if (decision.activateReservation !== null) {
    await transaction.execute(
      sql`/* commit-update */ UPDATE sled_reservation SET kind = 'active' WHERE vmm_id = ${decision.activateReservation}`,
    );
  }
  if (decision.releaseCharge) {
    await transaction.execute(
      sql`/* commit-update */ DELETE FROM provisioning_charge WHERE instance_id = ${instanceId}`,
    );
    changed = true;
  }
  return changed;
}
