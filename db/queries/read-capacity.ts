import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { INSTANCE_STATES, SLED_POLICIES } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const capacity = z.object({
  sleds: z.array(
    z.object({
      name: z.string(),
      policy: z.enum(SLED_POLICIES),
      threads: z.number(),
      threadsReserved: z.number(),
      memoryBytes: z.number(),
      memoryReservedBytes: z.number(),
      silentSeconds: z.number(),
      troubles: z.number(),
    }),
  ),
  instances: z.array(z.object({ state: z.enum(INSTANCE_STATES), count: z.number() })),
  migrations: z.number(),
  openOperations: z.number(),
});
export type Capacity = z.infer<typeof capacity>;

/** Reads, in one statement, what a dashboard shows: sleds and their use, instances by row state, what is in flight. */
export async function readCapacity(db: Queryable): Promise<Capacity> {
  const result = await db.execute(sql`
    SELECT coalesce((SELECT jsonb_agg(jsonb_build_object('name', name, 'policy', policy, 'threads', threads,
        'threadsReserved', reserved_threads, 'memoryBytes', memory_bytes, 'memoryReservedBytes', reserved_memory_bytes,
        'silentSeconds', coalesce(extract(epoch FROM now() - silent_since), 0), 'troubles', cardinality(agent_trouble)))
        FROM sled WHERE policy <> 'expunged'), '[]'::jsonb) AS sleds,
      coalesce((SELECT jsonb_agg(jsonb_build_object('state', state, 'count', count)) FROM (
        SELECT state, count(*) FROM instance WHERE time_deleted IS NULL GROUP BY state) counted), '[]'::jsonb) AS instances,
      (SELECT count(*)::int FROM instance WHERE migration_id IS NOT NULL) AS migrations,
      (SELECT count(*)::int FROM operation WHERE time_ended IS NULL) AS "openOperations"`);
  return capacity.parse(result.rows[0]);
}
