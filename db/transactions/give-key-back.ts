import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import type { RequestKey } from './take-key.ts';

/** A sending that began nothing gives its turn up: the next one of the same request need not wait for its end. */
export async function giveKeyBack(db: Queryable, { value, sending }: RequestKey): Promise<void> {
  await db.execute(sql`/* give-key-back */
    UPDATE idempotency_key SET taken_until = NULL
    WHERE key = ${value} AND taken_by = ${sending} AND operation_id IS NULL`);
}
