import { sql } from 'drizzle-orm';
import type { KeptRefusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import type { RequestKey } from './take-key.ts';

/**
 * A sending that began nothing gives its turn up: the next one of the same request need not wait for its end. With a `refusal`,
 * that is the answer to each of them.
 */
export async function giveKeyBack(
  db: Queryable,
  { value, sending }: RequestKey,
  refusal: KeptRefusal | null = null,
): Promise<void> {
  await db.execute(sql`/* give-key-back */
    UPDATE idempotency_key SET taken_until = NULL, refusal = ${refusal === null ? null : JSON.stringify(refusal)}::jsonb
    WHERE key = ${value} AND taken_by = ${sending} AND operation_id IS NULL`);
}
