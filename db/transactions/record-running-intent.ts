import { sql } from 'drizzle-orm';
import { verdict } from '../../model/legality.ts';
import type { Database } from '../connect.ts';
import { retryOnConflict } from '../errors.ts';
import { lockInstance } from '../queries/lock-instance.ts';
import type { InstanceRecord } from '../queries/read-instance.ts';

/**
 * Records that the user wants an instance to run that is started already (a start that is a no-op). Does nothing where a
 * start would have something to do, or is refused: returns the record as it was read.
 */
export async function recordRunningIntent(db: Database, instanceId: string): Promise<InstanceRecord> {
  return retryOnConflict(() =>
    db.transaction(async (transaction) => {
      const record = await lockInstance(transaction, instanceId);
      if (verdict(record.externalState, 'start') === 'no-op') {
        await transaction.execute(
          sql`/* record-running-intent */ UPDATE instance SET intended_state = 'running' WHERE id = ${instanceId}`,
        );
      }
      return record;
    }),
  );
}
