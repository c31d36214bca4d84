import { type SQL, sql } from 'drizzle-orm';
import { z } from 'zod';
import { MIGRATION_STATES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const place = {
  vmmId: z.string(),
  sledName: z.string().nullable(),
  sledAddress: z.string().nullable(),
  sledAgentId: z.string().nullable(),
};
const migrationRow = z.object({
  migrationId: z.string(),
  instanceName: z.string(),
  linked: z.boolean(),
  source: z.object({ ...place, state: z.enum(MIGRATION_STATES) }),
  target: z.object({ ...place, state: z.enum(MIGRATION_STATES) }),
});
export type StoredMigration = z.infer<typeof migrationRow>;

/** A migration, with both of its sides and where they are; `null` when there is no such migration. */
export function readMigration(db: Queryable, migrationId: string): Promise<StoredMigration | null> {
  return read(db, sql`WHERE m.id = ${migrationId}`);
}

/** The newest migration of an instance; `null` when it never had one. */
export function readLastMigration(db: Queryable, instanceId: string): Promise<StoredMigration | null> {
  return read(db, sql`WHERE m.instance_id = ${instanceId} ORDER BY m.time_created DESC, m.id LIMIT 1`);
}

async function read(db: Queryable, which: SQL): Promise<StoredMigration | null> {
  const side = (name: string) =>
    sql.raw(`jsonb_build_object('vmmId', ${name}.id, 'sledName', ${name}_sled.name, 'sledAddress', ${name}_sled.address,
      'sledAgentId', ${name}_sled.kept_agent_id,
      'state', m.${name}_state) AS ${name}`);
  const result = await db.execute(sql`
    SELECT m.id AS "migrationId", i.name AS "instanceName", i.migration_id IS NOT DISTINCT FROM m.id AS linked,
      ${side('source')}, ${side('target')}
    FROM migration m JOIN instance i ON i.id = m.instance_id
    JOIN vmm source ON source.id = m.source_vmm_id JOIN vmm target ON target.id = m.target_vmm_id
    LEFT JOIN sled source_sled ON source_sled.id = source.sled_id LEFT JOIN sled target_sled ON target_sled.id = target.sled_id
    ${which}`);
  const row = result.rows[0];
  return row === undefined ? null : migrationRow.parse(row);
}
