import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** Forgets keys that are older than `ageMs` milliseconds, at most `limit` at a time. Returns how many. */
export async function forgetOldKeys(db: Queryable, ageMs: number, limit = 1_000): Promise<number> {
  const result = await db.execute(sql`/* forget-keys */
    DELETE FROM idempotency_key WHERE key IN (
      SELECT key FROM idempotency_key WHERE time_created < now() - ${ageMs} * interval '1 millisecond' LIMIT ${limit})`);
  return result.rowCount ?? 0;
}
