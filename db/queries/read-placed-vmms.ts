import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { VMM_STATES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const placedVmm = z.object({
  id: z.string(),
  instance_id: z.string(),
  sled_id: z.string().nullable(),
  state: z.enum(VMM_STATES),
  deleted: z.boolean(),
});
export type PlacedVmm = z.infer<typeof placedVmm>;

/** Every VMM that isn't deleted, and those with one of these ids whatever has become of them, by their ids. */
export async function readPlacedVmms(db: Queryable, ids: readonly string[]): Promise<Map<string, PlacedVmm>> {
  const result = await db.execute(sql`
    SELECT id, instance_id, sled_id, state, false AS deleted FROM vmm WHERE time_deleted IS NULL
    UNION ALL SELECT id, instance_id, sled_id, state, true FROM vmm WHERE time_deleted IS NOT NULL
      AND id IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(ids)}::jsonb))`);
  return new Map(result.rows.map((row) => placedVmm.parse(row)).map((vmm) => [vmm.id, vmm]));
}
