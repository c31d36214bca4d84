import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { SLED_POLICIES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';

const sledRow = z.object({ name: z.string(), policy: z.enum(SLED_POLICIES) });

const instanceRow = z.object({ instanceId: z.string(), name: z.string() });

/** More than a sled holds; a drain reads again after each round. */
const MAX_INSTANCES = 5_000;

/** A sled that is drained, and the instances that name a VMM there: their active one, or a target that lives. */
export interface DrainWork {
  readonly sled: z.infer<typeof sledRow>;
  readonly instances: readonly z.infer<typeof instanceRow>[];
}

/** Reads what there is to do on a sled; `null` when there is no such sled. */
export async function readDrainWork(db: Queryable, sledId: string): Promise<DrainWork | null> {
  const found = await db.execute(sql`SELECT name, policy FROM sled WHERE id = ${sledId}`);
  if (found.rows[0] === undefined) return null;
  const result = await db.execute(sql`
    SELECT instance.id AS "instanceId", instance.name FROM instance
    WHERE id IN (SELECT vmm.instance_id FROM vmm JOIN instance named ON named.id = vmm.instance_id
      WHERE vmm.sled_id = ${sledId} AND vmm.time_deleted IS NULL
        AND (vmm.id = named.active_vmm_id AND vmm.state <> 'saga_unwound'
          OR vmm.id = named.target_vmm_id AND vmm.state NOT IN ${goneStates}))
    ORDER BY instance.id LIMIT ${MAX_INSTANCES}`);
  return { sled: sledRow.parse(found.rows[0]), instances: result.rows.map((row) => instanceRow.parse(row)) };
}
