/**
 * The reaper: deletes, batch by batch, what nothing names and nothing waits for, and what has been over for longer than the
 * operator keeps it. It also looks through whole tables for what no transaction of ours leaves behind, which is too much for
 * the updater's quick passes.
 */
import type { Database } from '../db/connect.ts';
import { databaseError, retryOnConflict } from '../db/errors.ts';
import { findStrays } from '../db/queries/find-update-candidates.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { forgetOldKeys } from '../db/transactions/forget-keys.ts';
import { REAP_BATCH, reapCharges, reapReservations, reapVmms } from '../db/transactions/reap.ts';
import { closeOpenRecords, forgetOldRecords } from '../db/transactions/reap-audit-log.ts';
import {
  type ExpiryRequest,
  type OpenSagas,
  reapCertificates,
  reapInstances,
  reapInvites,
  reapMigrations,
  reapOperations,
  reapPastVmms,
  reapProjects,
  reapTokens,
} from '../db/transactions/reap-expired.ts';
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
/** How long what is over is kept when nothing else is said, in days. */
export const DEFAULT_RETENTION_DAYS = 30;
/** How often a batch is tried that met a row which somebody was just writing to. */
const EXPIRY_TRIES = 3;
/** A record that is open for so long, in milliseconds, is nobody's any more: no call and hardly an operation takes a day. */
const RECORDS_OPEN_MS = DAY_MS;

/** One pass. */
export async function reap({
  db,
  workflows,
  auditDays = DEFAULT_AUDIT_DAYS,
  retentionDays = DEFAULT_RETENTION_DAYS,
}: Pick<ActivityContext, 'db' | 'workflows' | 'auditDays' | 'retentionDays'>): Promise<ReaperFindings> {
  const count = (batch: (limit: number) => Promise<number>) => inBatches(AUDIT_BATCH, () => batch(AUDIT_BATCH));
  const all = async (batch: (db: Database) => Promise<string[]>) => {
    const ids: string[] = [];
    await inBatches(REAP_BATCH, async () => {
      const some = await retryOnConflict(() => batch(db));
      ids.push(...some);
      return some.length;
    });
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
  const old = await reapExpired(db, workflows, retentionDays * DAY_MS);
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
    ...old,
  };
}

/** Takes batches until one is not full (`size`), {@link MAX_BATCHES} at most. Returns how many rows there were in all. */
async function inBatches(size: number, take: () => Promise<number>): Promise<number> {
  let sum = 0;
  for (let taken = 1; taken <= MAX_BATCHES; taken++) {
    const some = await take();
    sum += some;
    if (some < size) break;
  }
  return sum;
}

type Expired = Pick<
  ReaperFindings,
  | 'oldOperations'
  | 'oldMigrations'
  | 'oldVmms'
  | 'oldInstances'
  | 'oldProjects'
  | 'oldTokens'
  | 'oldCertificates'
  | 'oldInvites'
>;

/** What is reaped when it has been over for long, in the order of the foreign keys. */
export const EXPIRING: readonly (readonly [
  keyof Expired,
  (db: Database, request: ExpiryRequest & OpenSagas) => Promise<number>,
])[] = [
  ['oldOperations', reapOperations],
  ['oldMigrations', reapMigrations],
  ['oldVmms', reapPastVmms],
  ['oldInstances', reapInstances],
  ['oldTokens', reapTokens],
  ['oldProjects', reapProjects],
  ['oldCertificates', reapCertificates],
  ['oldInvites', reapInvites],
];

/**
 * Reaps what has been over for more than `keptMs` milliseconds, at most so many batches of a kind. What there is none of is
 * left out. A saga whose workflow is open although its outcome is on record (its build has no worker any more) may run again
 * from its beginning: it must find its rows.
 */
export async function reapExpired(
  db: Database,
  workflows: Pick<ActivityContext['workflows'], 'findOpenSagas'>,
  keptMs: number,
  limit = REAP_BATCH,
): Promise<Expired> {
  // Well within what is kept: Temporal's clock is another one than the database's.
  const request = { keptMs, limit, openOperationIds: await workflows.findOpenSagas(keptMs / 2) };
  const found: { -readonly [Kind in keyof Expired]: number } = {};
  for (const [kind, reapBatch] of EXPIRING) {
    const sum = await inBatches(limit, () => besideWriters(() => reapBatch(db, request)));
    if (sum > 0) found[kind] = sum;
  }
  return found;
}

/** A batch that met a row to which a reference was just being added is tried again, and reads that then. */
async function besideWriters(batch: () => Promise<number>): Promise<number> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await retryOnConflict(batch);
    } catch (error) {
      const foreignKey = databaseError(error)?.code === '23503';
      if (!foreignKey || attempt >= EXPIRY_TRIES) throw error;
    }
  }
}
