/**
 * The journal: what really happened to the rows that the invariants speak of, written by database triggers, so that
 * "only the update saga clears ids" is checked against history and not against the code's intention.
 *
 * The writer of a change is the tag at the head of its statement (`… commit-update …` in a comment), which every
 * transaction in `db/transactions` carries and `pg_stat_activity` shows as well; a statement without one is `untagged`.
 *
 * For tests and for the doctor on an installation that can spare the writes: it is no migration, and it only grows. The
 * triggers fire also while `session_replication_role` is `replica`.
 */
import { sql } from 'drizzle-orm';
import { ADVISORY_LOCKS } from './advisory-locks.ts';
import type { Queryable } from './connect.ts';

const TABLES = ['instance', 'vmm', 'migration', 'sled_reservation', 'provisioning_charge', 'operation'] as const;

const INSTALL = `
SELECT pg_advisory_xact_lock(${ADVISORY_LOCKS.journal});
CREATE SCHEMA IF NOT EXISTS doctor;
CREATE TABLE IF NOT EXISTS doctor.journal (
  -- Given out under the changed row's lock: the entries of one row are in the order of their commits.
  sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  time timestamptz NOT NULL DEFAULT clock_timestamp(),
  transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
  writer text NOT NULL,
  relation text NOT NULL,
  change text NOT NULL,
  row_id uuid NOT NULL,
  instance_id uuid,
  before jsonb,
  after jsonb,
  -- What was true elsewhere at that moment.
  context jsonb
);
CREATE INDEX IF NOT EXISTS journal_instance ON doctor.journal (instance_id, sequence);

CREATE OR REPLACE FUNCTION doctor.record_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  old_row jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
  new_row jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
  any_row jsonb := coalesce(new_row, old_row);
  known jsonb;
BEGIN
  IF old_row = new_row THEN RETURN NULL; END IF;
  CASE TG_TABLE_NAME
  WHEN 'instance' THEN
    IF TG_OP = 'UPDATE' AND (old_row->>'active_vmm_id', old_row->>'target_vmm_id') IS DISTINCT FROM (new_row->>'active_vmm_id', new_row->>'target_vmm_id') THEN
      known := jsonb_build_object(
        'active_was', (SELECT state FROM vmm WHERE id = (old_row->>'active_vmm_id')::uuid),
        'target_was', (SELECT state FROM vmm WHERE id = (old_row->>'target_vmm_id')::uuid));
    END IF;
  WHEN 'vmm' THEN
    IF TG_OP = 'UPDATE' AND old_row->'unwinding_since' IS DISTINCT FROM new_row->'unwinding_since' THEN
      known := jsonb_build_object(
        'target_side', (SELECT target_state FROM migration WHERE target_vmm_id = (new_row->>'id')::uuid));
    END IF;
  WHEN 'sled_reservation' THEN
    known := jsonb_build_object('vmm', (SELECT state FROM vmm WHERE id = (any_row->>'vmm_id')::uuid));
  WHEN 'provisioning_charge' THEN
    known := (SELECT jsonb_build_object('charged_cpus', charged_cpus, 'quota_cpus', quota_cpus,
        'charged_memory_bytes', charged_memory_bytes, 'quota_memory_bytes', quota_memory_bytes)
      FROM project WHERE id = (any_row->>'project_id')::uuid);
  ELSE NULL;
  END CASE;
  INSERT INTO doctor.journal (writer, relation, change, row_id, instance_id, before, after, context)
  VALUES (
    coalesce(substring(current_query() FROM '^\\s*/\\*\\s*([a-z0-9-]+)\\s*\\*/'), 'untagged'),
    TG_TABLE_NAME, lower(TG_OP),
    (any_row->>CASE TG_TABLE_NAME WHEN 'sled_reservation' THEN 'vmm_id' WHEN 'provisioning_charge' THEN 'instance_id' ELSE 'id' END)::uuid,
    (any_row->>CASE TG_TABLE_NAME WHEN 'instance' THEN 'id' ELSE 'instance_id' END)::uuid,
    old_row, new_row, known);
  RETURN NULL;
END $$;

${TABLES.map(
  // Triggers fire in the order of their names: this one after those that keep the sums.
  (table) => `
DROP TRIGGER IF EXISTS zz_doctor_journal ON ${table};
CREATE TRIGGER zz_doctor_journal AFTER INSERT OR UPDATE OR DELETE ON ${table} FOR EACH ROW EXECUTE FUNCTION doctor.record_change();
ALTER TABLE ${table} ENABLE ALWAYS TRIGGER zz_doctor_journal;`,
).join('')}`;

/** Installs the journal; what an earlier one holds is kept. Throws PostgreSQL's errors. */
export async function installJournal(db: Queryable): Promise<void> {
  await db.execute(sql.raw(INSTALL));
}
