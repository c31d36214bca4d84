import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { VMM_STATES } from '../../model/states.ts';
import type { SledVmmState } from '../../wire/sled-protocol.ts';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

const sledVmm = z.object({
  id: z.string(),
  instance_id: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  deleted: z.boolean(),
  reserved: z.boolean(),
  foreign: z.boolean(),
  stray: z.boolean(),
  newer: z.boolean(),
});

/**
 * What the database knows of a sled's VMMs: the undeleted ones, and those that the sled reports whatever has become of
 * them. `foreign`: the VMM is placed on another sled that isn't expunged, so that this one may not report on it: it
 * may have a copy of its data, or its former address. `stray`: it is one of a sled without an identity, and
 * over: whoever has it was told to make it at another's address. `newer`:
 * the report has something that is not known yet, by the rules of a report's handling, so that a round over thousands of
 * VMMs to which nothing has happened is one statement a sled.
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
      coalesce(vmm.sled_id <> ${sledId} AND owner.policy <> 'expunged', false) AS "foreign",
      coalesce(vmm.sled_id <> ${sledId} AND NOT owner.identified AND (vmm.time_deleted IS NOT NULL OR vmm.state IN ${goneStates}), false) AS stray,
      coalesce(vmm.state_generation < report.gen, false)
        OR EXISTS (SELECT 1 FROM migration WHERE migration.id = report.in_id AND target_vmm_id = vmm.id
          AND target_state NOT IN ('completed', 'failed') AND target_generation < report.in_gen)
        OR EXISTS (SELECT 1 FROM migration WHERE migration.id = report.out_id AND source_vmm_id = vmm.id
          AND source_state NOT IN ('completed', 'failed') AND source_generation < report.out_gen) AS newer
    FROM subject JOIN vmm USING (id) LEFT JOIN report USING (id) LEFT JOIN sled owner ON owner.id = vmm.sled_id`);
  return result.rows.map((row) => sledVmm.parse(row));
}
