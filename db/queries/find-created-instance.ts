import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

const createdRow = z.object({ call: z.enum(KEYED_CALLS), instance_id: z.string(), project_id: z.string() });

/**
 * Finds what a `create` in a project with this key made; `null` when there was none. Throws a {@link Refusal} for another
 * call's key, and for one that made an instance of another project: it is nothing to this caller.
 */
export async function findCreated(db: Queryable, key: string, projectId: string): Promise<string | null> {
  const result = await db.execute(sql`
    SELECT call, instance_id, project_id FROM idempotency_key JOIN instance ON instance.id = instance_id WHERE key = ${key}`);
  const row = createdRow.optional().parse(result.rows[0]);
  if (row === undefined) return null;
  if (row.call !== 'create' || row.project_id !== projectId)
    throw Refusal.invalid(
      `Idempotency-Key: ${key} was given to another call (${row.call}); a new call needs a new key`,
    );
  return row.instance_id;
}
