import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { INSTANCE_STATES, INTENDED_STATES, MIGRATION_STATES, VMM_STATES } from '../../model/states.ts';
import type { UpdateSnapshot } from '../../model/update-decision.ts';
import type { Queryable } from '../connect.ts';
import type { InstanceNames } from './read-names.ts';

const vmmFacts = z.object({
  id: z.string(),
  state: z.enum(VMM_STATES),
  unwinding: z.boolean(),
  hasReservation: z.boolean(),
});
const snapshotRow = z.object({
  instance_name: z.string(),
  project_name: z.string(),
  state: z.enum(INSTANCE_STATES),
  generation: z.coerce.number(),
  intended_state: z.enum(INTENDED_STATES),
  deleted: z.boolean(),
  active: vmmFacts.nullable(),
  target: vmmFacts.nullable(),
  migration: z
    .object({
      id: z.string(),
      sourceVmmId: z.string(),
      targetVmmId: z.string(),
      sourceState: z.enum(MIGRATION_STATES),
      targetState: z.enum(MIGRATION_STATES),
    })
    .nullable(),
  active_guest_left: z.boolean(),
  unlinked: z.array(vmmFacts.extend({ guestLeft: z.boolean() })),
  has_charge: z.boolean(),
  fact_age_seconds: z.coerce.number().nullable(),
});

const vmmJson = (alias: string) =>
  sql.raw(`CASE WHEN ${alias}.id IS NOT NULL THEN
    jsonb_build_object('id', ${alias}.id, 'state', ${alias}.state, 'unwinding', ${alias}.unwinding_since IS NOT NULL,
      'hasReservation', EXISTS (SELECT 1 FROM sled_reservation r WHERE r.vmm_id = ${alias}.id)) END`);

/** An instance's snapshot and the generation that it was read at. */
export interface GenerationSnapshot extends UpdateSnapshot {
  readonly generation: number;
  /** How long ago the newest fact about its linked VMMs and its migration was written; `null` when it names none. */
  readonly factAgeSeconds: number | null;
  /** What people know it by. */
  readonly names: InstanceNames;
}

/** Reads, in one statement, all that the update decision needs; `null` when there is no such instance. */
export async function readSnapshot(db: Queryable, instanceId: string): Promise<GenerationSnapshot | null> {
  const result = await db.execute(sql`
    SELECT i.name AS instance_name, p.name AS project_name, i.state, i.state_generation AS generation, i.intended_state, i.time_deleted IS NOT NULL AS deleted,
      ${vmmJson('a')} AS active, ${vmmJson('t')} AS target,
      CASE WHEN m.id IS NOT NULL THEN jsonb_build_object('id', m.id, 'sourceVmmId', m.source_vmm_id,
        'targetVmmId', m.target_vmm_id, 'sourceState', m.source_state, 'targetState', m.target_state) END AS migration,
      EXISTS (SELECT 1 FROM migration left_by WHERE left_by.source_vmm_id = i.active_vmm_id
        AND left_by.source_state = 'completed') AS active_guest_left,
      coalesce((SELECT jsonb_agg(jsonb_build_object('id', v.id, 'state', v.state, 'unwinding', v.unwinding_since IS NOT NULL,
          'hasReservation', EXISTS (SELECT 1 FROM sled_reservation r WHERE r.vmm_id = v.id),
          'guestLeft', EXISTS (SELECT 1 FROM migration o WHERE o.source_vmm_id = v.id
            AND (o.source_state = 'completed' OR o.target_state = 'completed')))
          ORDER BY v.id)
        FROM vmm v WHERE v.instance_id = i.id AND v.time_deleted IS NULL
          AND v.id IS DISTINCT FROM i.active_vmm_id AND v.id IS DISTINCT FROM i.target_vmm_id), '[]'::jsonb) AS unlinked,
      EXISTS (SELECT 1 FROM provisioning_charge c WHERE c.instance_id = i.id) AS has_charge,
      extract(epoch FROM clock_timestamp() - greatest(a.time_state_updated, t.time_state_updated, m.time_source_updated,
        m.time_target_updated)) AS fact_age_seconds
    FROM instance i
    JOIN project p ON p.id = i.project_id
    LEFT JOIN vmm a ON a.id = i.active_vmm_id
    LEFT JOIN vmm t ON t.id = i.target_vmm_id
    LEFT JOIN migration m ON m.id = i.migration_id
    WHERE i.id = ${instanceId}`);
  const found = result.rows[0];
  if (found === undefined) return null;
  const row = snapshotRow.parse(found);
  return {
    state: row.state,
    generation: row.generation,
    intendedState: row.intended_state,
    deleted: row.deleted,
    active: row.active,
    target: row.target,
    migration: row.migration,
    activeGuestLeft: row.active_guest_left,
    unlinked: row.unlinked,
    hasCharge: row.has_charge,
    factAgeSeconds: row.fact_age_seconds,
    names: { instance: row.instance_name, project: row.project_name },
  };
}
