import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const isUuid = (id: string) => z.guid().safeParse(id).success;
const owner = z.object({ subject: z.string(), instance_id: z.string() });

/** The instances that instances, VMMs and migrations belong to, by their ids; whatever else is among these is left out. */
export async function findOwningInstances(db: Queryable, ids: readonly string[]): Promise<Map<string, string>> {
  const result = await db.execute(sql`
    WITH subject AS (SELECT value::uuid AS id FROM jsonb_array_elements_text(${JSON.stringify(ids.filter(isUuid))}::jsonb))
    SELECT instance.id AS subject, instance.id AS instance_id FROM instance WHERE id IN (SELECT id FROM subject)
    UNION ALL SELECT vmm.id, vmm.instance_id FROM vmm WHERE id IN (SELECT id FROM subject)
    UNION ALL SELECT migration.id, migration.instance_id FROM migration WHERE id IN (SELECT id FROM subject)`);
  return new Map(result.rows.map((row) => owner.parse(row)).map((each) => [each.subject, each.instance_id]));
}
