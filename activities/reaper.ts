/**
 * The reaper: deletes, batch by batch, what nothing names and nothing waits for. It also looks through whole tables for
 * what no transaction of ours leaves behind, which is too much for the updater's quick passes.
 */
import type { Database } from '../db/connect.ts';
import { retryOnConflict } from '../db/errors.ts';
import { findStrays } from '../db/queries/find-update-candidates.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { forgetOldKeys } from '../db/transactions/forget-keys.ts';
import { REAP_BATCH, reapCharges, reapReservations, reapVmms } from '../db/transactions/reap.ts';
import { closeOpenRecords, forgetOldRecords } from '../db/transactions/reap-audit-log.ts';
import type { ReaperFindings } from '../model/reconcilers.ts';
import { needsAction } from '../model/update-decision.ts';
import type { ActivityContext } from './context.ts';

/** How many batches of a kind one pass takes: what is left is the next pass's. */
const MAX_BATCHES = 50;

/** How long a client's key makes a call the same one: longer than operations can be read, in milliseconds. */
const KEYS_KEPT_MS = 7 * 24 * 3600 * 1000;

const DAY_MS = 24 * 3600 * 1000;
/** How long audit records are kept when nothing else is said, in days. */
export const DEFAULT_AUDIT_DAYS = 90;
/** How many audit records one statement deletes at most. */
const AUDIT_BATCH = 1_000;
/** A record that is open for so long, in milliseconds, is nobody's any more: no call and hardly an operation takes a day. */
const RECORDS_OPEN_MS = DAY_MS;

/** One pass. */
export async function reap({
  db,
  workflows,
  auditDays = DEFAULT_AUDIT_DAYS,
}: Pick<ActivityContext, 'db' | 'workflows' | 'auditDays'>): Promise<ReaperFindings> {
  const count = async (batch: (limit: number) => Promise<number>) => {
    let sum = 0;
    for (let taken = 1; taken <= MAX_BATCHES; taken++) {
      const some = await batch(AUDIT_BATCH);
      sum += some;
      if (some < AUDIT_BATCH) break;
    }
    return sum;
  };
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
  const oldRecords = await count((batch) => forgetOldRecords(db, auditDays * DAY_MS, batch));
  const openRecords = await count((batch) => closeOpenRecords(db, RECORDS_OPEN_MS, batch));
  const signalled: string[] = [];
  for (const instanceId of await findStrays(db)) {
    const snapshot = await readSnapshot(db, instanceId);
    if (snapshot === null || !needsAction(snapshot)) continue;
    await workflows.signalUpdate(instanceId);
    signalled.push(instanceId);
  }
  return {
    signalled,
    ...reaped,
    ...(oldRecords === 0 ? {} : { oldRecords }),
    ...(openRecords === 0 ? {} : { openRecords }),
  };
}
