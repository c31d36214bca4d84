import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { OPERATION_KINDS, VMM_STATES } from '../../model/states.ts';
import type { SledVmmState } from '../../wire/sled-protocol.ts';
import type { Queryable } from '../connect.ts';

const GONE = sql.raw(`('destroyed', 'failed', 'saga_unwound')`);

/**
 * The instances that may need an update, by what an index finds whatever the number of instances: a gone VMM that is not
 * retired, a migration, a stop that is not over, a VMM that lives on although its instance does not name it (its
 * reservation is tombstoned in the transaction that unlinks it). The decision itself is made on a snapshot.
 */
export async function findUpdateCandidates(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT instance_id AS id FROM vmm WHERE time_deleted IS NULL AND state IN ${GONE}
    UNION SELECT id FROM instance WHERE migration_id IS NOT NULL
    UNION SELECT id FROM instance WHERE state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL)
    UNION SELECT instance_id FROM sled_reservation WHERE kind = 'tombstoned'`);
  return result.rows.map((row) => String(row.id));
}

/**
 * Instances in a state that no transaction of ours leaves behind: a VMM that lives and is not named, a charge without a
 * VMM. It compares whole tables, so it is for a look now and then.
 */
export async function findStrays(db: Queryable): Promise<string[]> {
  const result = await db.execute(sql`
    SELECT vmm.instance_id AS id FROM vmm JOIN instance ON instance.id = vmm.instance_id
      WHERE vmm.time_deleted IS NULL AND vmm.id IS DISTINCT FROM instance.active_vmm_id AND vmm.id IS DISTINCT FROM instance.target_vmm_id
    UNION SELECT charge.instance_id FROM provisioning_charge charge JOIN instance ON instance.id = charge.instance_id
      WHERE instance.state <> 'vmm'`);
  return result.rows.map((row) => String(row.id));
}

const openOperation = z.object({
  id: z.string(),
  kind: z.enum(OPERATION_KINDS),
  instance_id: z.string(),
  vmm_id: z.string().nullable(),
  workflow_id: z.string(),
});

/** Operations without an outcome that began at least `olderThanMs` milliseconds ago. */
export async function findOpenOperations(db: Queryable, olderThanMs: number) {
  const result = await db.execute(sql`
    SELECT id, kind, instance_id, vmm_id, workflow_id FROM operation
    WHERE time_ended IS NULL AND time_started < now() - ${olderThanMs} * interval '1 millisecond' ORDER BY time_started`);
  return result.rows.map((row) => openOperation.parse(row));
}

const sledVmm = z.object({
  id: z.string(),
  instance_id: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  deleted: z.boolean(),
  reserved: z.boolean(),
  foreign: z.boolean(),
  news: z.boolean(),
});

/**
 * What the database knows of a sled's VMMs: the undeleted ones, and those that the sled reports whatever has become of
 * them. `foreign`: the VMM is placed on another sled, one with an identity, so that this one may not speak of it. `news` says whether the report has anything that is not known yet, by the rules of a report's handling, so that a
 * round over thousands of VMMs to which nothing has happened is one statement a sled.
 */
export async function readSledVmms(
  db: Queryable,
  sledId: string,
  reported: readonly (SledVmmState & { readonly vmm_id: string })[],
) {
  const reports = JSON.stringify(
    reported.map(({ vmm_id, vmm_state, migration_in, migration_out }) => ({
      id: vmm_id,
      gen: vmm_state.gen,
      in_id: migration_in?.migration_id,
      in_gen: migration_in?.gen,
      out_id: migration_out?.migration_id,
      out_gen: migration_out?.gen,
    })),
  );
  const result = await db.execute(sql`
    WITH report AS (
      SELECT * FROM jsonb_to_recordset(${reports}::jsonb)
        AS report(id uuid, gen bigint, in_id uuid, in_gen bigint, out_id uuid, out_gen bigint)
    ), subject AS (
      SELECT id FROM vmm WHERE sled_id = ${sledId} AND time_deleted IS NULL UNION SELECT id FROM report
    )
    SELECT vmm.id, vmm.instance_id, vmm.state, vmm.unwinding_since IS NOT NULL AS unwinding, vmm.time_deleted IS NOT NULL AS deleted,
      EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = vmm.id) AS reserved,
      coalesce(vmm.sled_id <> ${sledId} AND owner.identified, false) AS "foreign",
      coalesce(vmm.state_generation < report.gen, false)
        OR EXISTS (SELECT 1 FROM migration WHERE migration.id = report.in_id AND target_vmm_id = vmm.id
          AND target_state NOT IN ('completed', 'failed') AND target_generation < report.in_gen)
        OR EXISTS (SELECT 1 FROM migration WHERE migration.id = report.out_id AND source_vmm_id = vmm.id
          AND source_state NOT IN ('completed', 'failed') AND source_generation < report.out_gen) AS news
    FROM subject JOIN vmm USING (id) LEFT JOIN report USING (id) LEFT JOIN sled owner ON owner.id = vmm.sled_id`);
  return result.rows.map((row) => sledVmm.parse(row));
}
