import { sql } from 'drizzle-orm';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
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
      const { instance, shown } = record;
      const legal = verdict(shown, 'stop');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('stop', instance.name, shown));
      if (instance.state === 'failed') {
        await transaction.execute(sql`/* record-stop */
          UPDATE instance SET state = 'no_vmm', intended_state = 'stopped', state_generation = state_generation + 1, time_state_updated = now()
          WHERE id = ${instanceId}`);
      } else {
        await transaction.execute(
          sql`/* record-stop */ UPDATE instance SET intended_state = 'stopped' WHERE id = ${instanceId}`,
        );
      }
      const after = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      return { record: after, carry: instance.state === 'vmm' && shown !== 'stopped' };
    }),
  );
}

/**
 * Records that the user wants an instance to run that is started already (a start that is a no-op). Does nothing where a
 * start would have something to do, or is refused: returns the record as it was read.
 */
export async function recordRunningIntent(db: Database, instanceId: string): Promise<InstanceRecord> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = requireInstance(await lockInstance(transaction, instanceId), instanceId);
      if (verdict(record.shown, 'start') === 'no-op') {
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
      const { instance, shown } = record;
      const legal = verdict(shown, 'delete');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('delete', instance.name, shown));
      if (legal !== 'act') throw Refusal.invalid(refusalMessage('delete', instance.name, shown));
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
