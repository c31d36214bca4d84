import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

/** What people know an instance by. */
export const instanceNames = z.object({ instance: z.string(), project: z.string() });
export type InstanceNames = Readonly<z.infer<typeof instanceNames>>;

const namesRow = z.object({
  instanceId: z.string().nullable(),
  instanceName: z.string().nullable(),
  projectName: z.string().nullable(),
  /** Where the named VMM is, or else the instance's active one. */
  vmmSledName: z.string().nullable(),
  /** The name of the sled that was asked about. */
  sledName: z.string().nullable(),
});
export type Names = z.infer<typeof namesRow>;

/** The names of an instance (by its id or a VMM's), of the sled that it is on, and of a sled; `null` for what isn't there. */
export async function readNames(
  db: Queryable,
  ids: { readonly instanceId?: string; readonly vmmId?: string; readonly sledId?: string },
): Promise<Names> {
  const result = await db.execute(sql`
    SELECT i.id AS "instanceId", i.name AS "instanceName", p.name AS "projectName", s.name AS "vmmSledName",
      (SELECT name FROM sled WHERE id = ${ids.sledId ?? null}::uuid) AS "sledName"
    FROM (SELECT 1) one
    LEFT JOIN instance i ON i.id = coalesce(${ids.instanceId ?? null}::uuid,
      (SELECT instance_id FROM vmm WHERE id = ${ids.vmmId ?? null}::uuid))
    LEFT JOIN project p ON p.id = i.project_id
    LEFT JOIN vmm v ON v.id = coalesce(${ids.vmmId ?? null}::uuid, i.active_vmm_id)
    LEFT JOIN sled s ON s.id = v.sled_id`);
  return namesRow.parse(result.rows[0]);
}
