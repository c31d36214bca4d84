/**
 * What keeps each table from growing for ever, so that nobody adds one that does: a test holds this list against the database,
 * and plants a row that is long over into each that says `reaped`.
 */

/**
 * `reaped`: what has been over for longer than the operator keeps it is deleted by the reaper (`transactions/reap-expired.ts`,
 * `--retention-days`; the audit log has its own time, and so have keys). `follows`: its rows go with those of another table, or
 * with the end of what they are about. `by hand`: a row for each thing that an operator added, and none that comes by itself.
 * `fixed`: so many rows, always.
 */
export type TableBound = { readonly bound: 'reaped' | 'follows' | 'by hand' | 'fixed'; readonly why: string };

export const TABLE_BOUNDS: Readonly<Record<string, TableBound>> = {
  installation: { bound: 'fixed', why: 'one row' },
  project: { bound: 'reaped', why: 'once it was deleted and nothing of it is left' },
  sled: {
    bound: 'by hand',
    why: 'a row for each server that ever was added: an expunged one that answers is still asked what it runs',
  },
  sled_invite: { bound: 'reaped', why: 'once it has expired; a new invitation forgets old ones, too' },
  sled_certificate: { bound: 'reaped', why: 'once it has expired; a renewal forgets those before, too' },
  instance: { bound: 'reaped', why: 'once it was deleted and nothing of it is left' },
  vmm: { bound: 'reaped', why: 'once its row was deleted and nothing names it' },
  migration: { bound: 'reaped', why: 'once it is over and its VMMs are due, at most one a living VMM aside' },
  sled_reservation: { bound: 'follows', why: 'released with its VMM; an orphan is reaped at once' },
  provisioning_charge: { bound: 'follows', why: 'one for each incarnated instance; an orphan is reaped at once' },
  affinity_group: { bound: 'by hand', why: 'deleted by whoever made it' },
  affinity_group_member: { bound: 'follows', why: 'goes with its group and when its instance is deleted' },
  instance_network: { bound: 'follows', why: 'one for each instance, gone with it' },
  network_horizon: { bound: 'fixed', why: 'one row' },
  operation: { bound: 'reaped', why: 'once it has ended and no key names it' },
  lease_service: { bound: 'fixed', why: 'one row' },
  lease_service_gap: { bound: 'follows', why: 'forgotten by the APIs once no lease can depend on it' },
  idempotency_key: { bound: 'reaped', why: 'a week after it came' },
  access_token: { bound: 'reaped', why: 'once it was revoked, or has expired' },
  audit_log: { bound: 'reaped', why: 'as long as --audit-days says' },
  change_log: { bound: 'follows', why: 'the last 200,000 changes: who notes one forgets those before' },
  change_horizon: { bound: 'fixed', why: 'one row' },
  __drizzle_migrations: { bound: 'fixed', why: 'a row for each version of the schema' },
};
