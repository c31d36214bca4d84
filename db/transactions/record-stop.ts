import { sql } from 'drizzle-orm';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import type { Database, Queryable } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { lockInstance } from '../queries/lock-instance.ts';
import type { InstanceRecord } from '../queries/read-instance.ts';

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
      const record = await lockInstance(transaction, instanceId);
      const { instance, externalState } = record;
      const legal = verdict(externalState, 'stop');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('stop', instance.name, externalState));
      await writeStop(transaction, record);
      const after = await lockInstance(transaction, instanceId);
      return { record: after, carry: instance.state === 'vmm' && externalState !== 'stopped' };
    }),
  );
}

/** Writes the intent `stopped` to an instance whose row is locked. */
export async function writeStop(transaction: Queryable, { instance }: InstanceRecord): Promise<void> {
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
