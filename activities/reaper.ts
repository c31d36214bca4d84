/** The reaper: deletes, batch by batch, what nothing names and nothing waits for. */
import type { Database } from '../db/connect.ts';
import { retryOnConflict } from '../db/errors.ts';
import { REAP_BATCH, reapCharges, reapReservations, reapVmms } from '../db/transactions/reap.ts';
import type { ReaperFindings } from '../model/reconcilers.ts';

/** How many batches of a kind one pass takes: what is left is the next pass's. */
const MAX_BATCHES = 50;

/** One pass. */
export async function reap(db: Database): Promise<ReaperFindings> {
  const all = async (batch: (db: Database) => Promise<string[]>) => {
    const ids: string[] = [];
    for (let taken = 1; taken <= MAX_BATCHES; taken++) {
      const some = await retryOnConflict(() => batch(db));
      ids.push(...some);
      if (some.length < REAP_BATCH) break;
    }
    return ids;
  };
  return { vmms: await all(reapVmms), reservations: await all(reapReservations), charges: await all(reapCharges) };
}
