import { sql } from 'drizzle-orm';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { type InstanceRecord, lockInstance } from '../queries/read-instance.ts';

/** What a recorded request came to. */
export interface RecordedIntent {
  readonly record: InstanceRecord;
  /** Some VMM has, or may get, the guest: the stop must be carried to it. */
  readonly carry: boolean;
}

/**
 * Records that the user wants the instance stopped: from here on it ends Stopped, whatever happens. A Failed one becomes
 * Stopped at once. Throws a {@link Refusal} for an instance that isn't there or may not be stopped.
 */
export async function recordStop(db: Database, instanceId: string): Promise<RecordedIntent> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      const { instance, externalState } = record;
      const legal = verdict(externalState, 'stop');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('stop', instance.name, externalState));
      await writeStop(transaction, record);
      const after = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      return { record: after, carry: instance.state === 'vmm' && externalState !== 'stopped' };
    }),
  );
}

/** Writes the intent `stopped` to an instance whose row is locked. */
async function writeStop(transaction: Queryable, { instance }: InstanceRecord): Promise<void> {
  if (instance.state === 'failed') {
    await transaction.execute(sql`/* record-stop */
      UPDATE instance SET state = 'no_vmm', intended_state = 'stopped', state_generation = state_generation + 1, time_state_updated = now()
      WHERE id = ${instance.id}`);
  } else {
    await transaction.execute(
      sql`/* record-stop */ UPDATE instance SET intended_state = 'stopped' WHERE id = ${instance.id}`,
    );
  }
}

/**
 * Records a stop by force, on an operator's word that the sleds of the VMMs `vouched` are powered off: the intent is
 * `stopped`; those VMMs are failed at once and their sides of a migration with them, as when their sled is expunged; one
 * that its saga is unwinding is left to the saga, which waits for its sled no more. `seen` are all living VMMs that the
 * word was checked against: when the instance names another one by now, nothing is written and `null` is returned. Throws
 * a {@link Refusal}.
 */
export async function recordForceStop(
  db: Database,
  instanceId: string,
  vmms: { readonly seen: readonly string[]; readonly vouched: readonly string[] },
): Promise<RecordedIntent | null> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      const { instance, active, target, externalState } = record;
      if (verdict(externalState, 'stop') === 'conflict')
        throw Refusal.conflict(refusalMessage('stop', instance.name, externalState));
      const living = [active, target].filter((vmm) => vmm !== null && !isGoneVmmState(vmm.state));
      if (living.some((vmm) => vmm !== null && !vmms.seen.includes(vmm.id))) return null;
      await writeStop(transaction, record);
      for (const vmmId of [...vmms.vouched].sort()) await vouchGone(transaction, vmmId);
      const after = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      const left = [after.active, after.target].some((vmm) => vmm !== null && !isGoneVmmState(vmm.state));
      return { record: after, carry: left };
    }),
  );
}

async function vouchGone(transaction: Queryable, vmmId: string): Promise<void> {
  await transaction.execute(sql`/* force-stop */
    UPDATE vmm SET vouched_gone_at = coalesce(vouched_gone_at, now()) WHERE id = ${vmmId} AND time_deleted IS NULL`);
  const failed = await transaction.execute(sql`/* force-stop */
    UPDATE vmm SET state = 'failed', failure_reason = 'stopped by force: an operator stated that its sled is powered off',
      state_generation = state_generation + 1, time_state_updated = now()
    WHERE id = ${vmmId} AND time_deleted IS NULL AND unwinding_since IS NULL
      AND state NOT IN ('destroyed', 'failed', 'saga_unwound')
    RETURNING id`);
  if (failed.rows.length === 0) return;
  await transaction.execute(sql`/* force-stop */
    UPDATE migration SET source_state = 'failed', source_generation = source_generation + 1, time_source_updated = now()
    WHERE source_vmm_id = ${vmmId} AND source_state NOT IN ('completed', 'failed')`);
  await transaction.execute(sql`/* force-stop */
    UPDATE migration SET target_state = 'failed', target_generation = target_generation + 1, time_target_updated = now()
    WHERE target_vmm_id = ${vmmId} AND target_state NOT IN ('completed', 'failed')`);
}

/**
 * Records that the user wants an instance to run that is started already (a start that is a no-op). Does nothing where a
 * start would have something to do, or is refused: returns the record as it was read.
 */
export async function recordRunningIntent(db: Database, instanceId: string): Promise<InstanceRecord> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      if (verdict(record.externalState, 'start') === 'no-op') {
        await transaction.execute(
          sql`/* record-running-intent */ UPDATE instance SET intended_state = 'running' WHERE id = ${instanceId}`,
        );
      }
      return record;
    }),
  );
}

/**
 * Deletes an instance that shows Stopped or Failed: its name is free at once. Over a `saga_unwound` leftover the ids
 * stay: the update saga clears them and writes `destroyed`. Throws a {@link Refusal}.
 */
export async function deleteInstance(db: Database, instanceId: string): Promise<void> {
  await retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      const { instance, externalState } = record;
      const legal = verdict(externalState, 'delete');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('delete', instance.name, externalState));
      if (legal !== 'act') throw Refusal.invalid(refusalMessage('delete', instance.name, externalState));
      if (instance.state === 'vmm') {
        await transaction.execute(
          sql`/* delete-instance */ UPDATE instance SET time_deleted = now(), intended_state = 'destroyed' WHERE id = ${instanceId}`,
        );
      } else {
        await transaction.execute(sql`/* delete-instance */
          UPDATE instance SET time_deleted = now(), intended_state = 'destroyed', state = 'destroyed',
            state_generation = state_generation + 1, time_state_updated = now()
          WHERE id = ${instanceId}`);
      }
    }),
  );
}

function requireInstance(record: InstanceRecord | null, instanceId: string): InstanceRecord {
  if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', instanceId);
  return record;
}
