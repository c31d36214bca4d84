import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { INTENDED_STATES, SLED_POLICIES, VMM_STATES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const placeRow = z.object({
  vmmId: z.string(),
  instanceId: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  deleted: z.boolean(),
  linked: z.boolean(),
  commanded: z.boolean(),
  /** Its sled is expunged, was declared dead, or is powered off, as an operator stated: no answer is awaited from there. */
  givenUp: z.boolean(),
  /** Its sled was expunged, though its guests may run still: nothing new is begun there. */
  sledLeaves: z.boolean(),
  intendedState: z.enum(INTENDED_STATES),
  sledId: z.string().nullable(),
  sledName: z.string().nullable(),
  sledAddress: z.string().nullable(),
  /** The id that its sled's agent keeps with its data, where it is known. */
  sledAgentId: z.string().nullable(),
  sledPolicy: z.enum(SLED_POLICIES).nullable(),
  sourceAddress: z.string().nullable(),
  /** The migration whose target it is. */
  migrationId: z.string().nullable(),
});

export type VmmPlace = z.infer<typeof placeRow>;

const columns = sql.raw(`
  SELECT vmm.id AS "vmmId", vmm.instance_id AS "instanceId", vmm.state, vmm.unwinding_since IS NOT NULL AS unwinding,
    vmm.time_deleted IS NOT NULL AS deleted, coalesce(vmm.id IN (instance.active_vmm_id, instance.target_vmm_id), false) AS linked,
    vmm.commanded_at IS NOT NULL AS commanded,
    vmm.vouched_gone_at IS NOT NULL OR sled.policy IS NOT DISTINCT FROM 'expunged' AS "givenUp", instance.intended_state AS "intendedState",
    coalesce(sled.expunging_since IS NOT NULL, false) AS "sledLeaves",
    vmm.sled_id AS "sledId", sled.name AS "sledName", sled.address AS "sledAddress", sled.kept_agent_id AS "sledAgentId", sled.policy AS "sledPolicy",
    (SELECT source.ip || ':' || source.port FROM migration JOIN vmm source ON source.id = migration.source_vmm_id
      WHERE migration.target_vmm_id = vmm.id) AS "sourceAddress",
    (SELECT id FROM migration WHERE target_vmm_id = vmm.id) AS "migrationId"
  FROM vmm JOIN instance ON instance.id = vmm.instance_id LEFT JOIN sled ON sled.id = vmm.sled_id`);

/** Where a VMM is, what it is to its instance, and what the user wants; `null` when there is no such VMM. */
export async function readVmmPlace(db: Queryable, vmmId: string): Promise<VmmPlace | null> {
  const result = await db.execute(sql`${columns} WHERE vmm.id = ${vmmId}`);
  const row = result.rows[0];
  return row === undefined ? null : placeRow.parse(row);
}

/** The VMMs that an instance names, the active one first. */
export async function readLinkedVmms(db: Queryable, instanceId: string): Promise<VmmPlace[]> {
  const result = await db.execute(sql`${columns} WHERE instance.id = ${instanceId}
    AND vmm.id IN (instance.active_vmm_id, instance.target_vmm_id) ORDER BY vmm.id = instance.active_vmm_id DESC`);
  return result.rows.map((row) => placeRow.parse(row));
}
