import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** Whether a client's key names a request. */
export async function isKeyKnown(db: Queryable, key: string): Promise<boolean> {
  const result = await db.execute(sql`SELECT 1 FROM idempotency_key WHERE key = ${key}`);
  return result.rows.length > 0;
}
