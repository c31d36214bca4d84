import { sql } from 'drizzle-orm';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { lockInstance } from '../queries/lock-instance.ts';

/**
 * Deletes an instance that shows Stopped or Failed: its name is free at once. Over a `saga_unwound` leftover the ids
 * stay: the update saga clears them and writes `destroyed`. Throws a {@link Refusal}.
 */
export async function deleteInstance(db: Database, instanceId: string): Promise<void> {
  await retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = await lockInstance(transaction, instanceId);
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
