/**
 * The reaper: deletes, batch by batch, what nothing names and nothing waits for. It also looks through whole tables for
 * what no transaction of ours leaves behind, which is too much for the updater's quick passes.
 */
import type { Database } from '../db/connect.ts';
import { retryOnConflict } from '../db/errors.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { findStrays } from '../db/queries/reconcile.ts';
import { forgetOldKeys } from '../db/transactions/idempotency-key.ts';
import { REAP_BATCH, reapCharges, reapReservations, reapVmms } from '../db/transactions/reap.ts';
import type { ReaperFindings } from '../model/reconcilers.ts';
import { needsAction } from '../model/update-decision.ts';
import type { ActivityContext } from './activities.ts';

/** How many batches of a kind one pass takes: what is left is the next pass's. */
const MAX_BATCHES = 50;

/** How long a client's key makes a call the same one: longer than operations can be read, in milliseconds. */
const KEYS_KEPT_MS = 7 * 24 * 3600 * 1000;

/** One pass. */
export async function reap({ db, workflows }: Pick<ActivityContext, 'db' | 'workflows'>): Promise<ReaperFindings> {
  const all = async (batch: (db: Database) => Promise<string[]>) => {
    const ids: string[] = [];
    for (let taken = 1; taken <= MAX_BATCHES; taken++) {
      const some = await retryOnConflict(() => batch(db));
      ids.push(...some);
      if (some.length < REAP_BATCH) break;
    }
    return ids;
  };
  const reaped = {
    vmms: await all(reapVmms),
    reservations: await all(reapReservations),
    charges: await all(reapCharges),
    oldKeys: await forgetOldKeys(db, KEYS_KEPT_MS, REAP_BATCH * MAX_BATCHES),
  };
  const signalled: string[] = [];
  for (const instanceId of await findStrays(db)) {
    const snapshot = await readSnapshot(db, instanceId);
    if (snapshot === null || !needsAction(snapshot)) continue;
    await workflows.signalUpdate(instanceId);
    signalled.push(instanceId);
  }
  return { signalled, ...reaped };
}
