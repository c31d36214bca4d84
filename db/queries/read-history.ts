import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { MIGRATION_STATES, OPERATION_KINDS, VMM_STATES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/** PostgreSQL writes times in JSON with its own offset; they are read as dates. */
const moment = z.coerce.date();
const history = z.object({
  name: z.string(),
  timeCreated: moment,
  timeDeleted: moment.nullable(),
  operations: z.array(
    z.object({
      id: z.string(),
      kind: z.enum(OPERATION_KINDS),
      workflowId: z.string(),
      succeeded: z.boolean().nullable(),
      message: z.string().nullable(),
      timeStarted: moment,
      timeEnded: moment.nullable(),
    }),
  ),
  vmms: z.array(
    z.object({
      id: z.string(),
      sled: z.string().nullable(),
      state: z.enum(VMM_STATES),
      failureReason: z.string().nullable(),
      timeCreated: moment,
      timeStateUpdated: moment,
    }),
  ),
  migrations: z.array(
    z.object({
      id: z.string(),
      source: z.string().nullable(),
      target: z.string().nullable(),
      sourceState: z.enum(MIGRATION_STATES),
      targetState: z.enum(MIGRATION_STATES),
      timeCreated: moment,
      timeUpdated: moment.nullable(),
    }),
  ),
});
export type StoredHistory = z.infer<typeof history>;

/** How many rows of each kind a history shows: the newest. */
const MOST = 200;

/** All that the database has of an instance's life, a deleted one's too; `null` when there is no such instance. */
export async function readHistory(db: Queryable, instanceId: string): Promise<StoredHistory | null> {
  const result = await db.execute(sql`
    SELECT i.name, to_json(i.time_created) AS "timeCreated", to_json(i.time_deleted) AS "timeDeleted",
      coalesce((SELECT jsonb_agg(row) FROM (
        SELECT id, kind, workflow_id AS "workflowId", succeeded, error->>'message' AS message,
          time_started AS "timeStarted", time_ended AS "timeEnded"
        FROM operation WHERE instance_id = i.id ORDER BY time_started DESC LIMIT ${MOST}) row), '[]'::jsonb) AS operations,
      coalesce((SELECT jsonb_agg(row) FROM (
        SELECT vmm.id, sled.name AS sled, vmm.state, vmm.failure_reason AS "failureReason",
          vmm.time_created AS "timeCreated", vmm.time_state_updated AS "timeStateUpdated"
        FROM vmm LEFT JOIN sled ON sled.id = vmm.sled_id
        WHERE vmm.instance_id = i.id ORDER BY vmm.time_created DESC LIMIT ${MOST}) row), '[]'::jsonb) AS vmms,
      coalesce((SELECT jsonb_agg(row) FROM (
        SELECT m.id, source_sled.name AS source, target_sled.name AS target, m.source_state AS "sourceState",
          m.target_state AS "targetState", m.time_created AS "timeCreated",
          greatest(m.time_source_updated, m.time_target_updated) AS "timeUpdated"
        FROM migration m JOIN vmm source ON source.id = m.source_vmm_id JOIN vmm target ON target.id = m.target_vmm_id
        LEFT JOIN sled source_sled ON source_sled.id = source.sled_id LEFT JOIN sled target_sled ON target_sled.id = target.sled_id
        WHERE m.instance_id = i.id ORDER BY m.time_created DESC LIMIT ${MOST}) row), '[]'::jsonb) AS migrations
    FROM instance i WHERE i.id = ${instanceId}`);
  const row = result.rows[0];
  return row === undefined ? null : history.parse(row);
}
