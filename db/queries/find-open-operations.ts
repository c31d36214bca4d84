import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { OPERATION_KINDS } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const openOperation = z.object({
  id: z.string(),
  kind: z.enum(OPERATION_KINDS),
  instance_id: z.string(),
  vmm_id: z.string().nullable(),
  workflow_id: z.string(),
});

/** Operations without an outcome that began at least `olderThanMs` milliseconds ago. */
export async function findOpenOperations(db: Queryable, olderThanMs: number) {
  const result = await db.execute(sql`
    SELECT id, kind, instance_id, vmm_id, workflow_id FROM operation
    WHERE time_ended IS NULL AND time_started < now() - ${olderThanMs} * interval '1 millisecond' ORDER BY time_started`);
  return result.rows.map((row) => openOperation.parse(row));
}
