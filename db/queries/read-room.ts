import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';
import { takesVmms } from './pick-sled.ts';

const room = z.object({ id: z.string(), cpus: z.coerce.number(), memoryBytes: z.coerce.number() });

export type Room = z.infer<typeof room>;

/** What is free on each sled that takes new VMMs: threads and bytes. */
export async function readSledRoom(db: Queryable): Promise<Room[]> {
  const result = await db.execute(sql`
    SELECT id, threads - reserved_threads AS cpus, memory_bytes - reserved_memory_bytes AS "memoryBytes"
    FROM sled WHERE ${takesVmms}`);
  return result.rows.map((row) => room.parse(row));
}

/** What is left of each of these projects' quotas; no quota is more than anything. */
export async function readQuotaRoom(db: Queryable, projectIds: readonly string[]): Promise<Room[]> {
  const result = await db.execute(sql`
    SELECT id, coalesce(quota_cpus - charged_cpus, 2147483647) AS cpus,
      coalesce(quota_memory_bytes - charged_memory_bytes, 9007199254740991) AS "memoryBytes"
    FROM project WHERE id IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(projectIds)}::jsonb))`);
  return result.rows.map((row) => room.parse(row));
}
