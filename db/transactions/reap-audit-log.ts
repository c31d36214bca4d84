import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** Completes, as `unknown`, one batch of records that began more than `ageMs` milliseconds ago and whose end nobody wrote. Returns how many. */
export async function closeOpenRecords(db: Queryable, ageMs: number, limit: number): Promise<number> {
  const closed = await db.execute(sql`/* audit */
    UPDATE audit_log SET time_completed = clock_timestamp(), result = 'unknown' WHERE id IN (
      SELECT id FROM audit_log WHERE time_completed IS NULL AND time_started < now() - ${ageMs} * interval '1 millisecond'
      ORDER BY time_started LIMIT ${limit} FOR UPDATE SKIP LOCKED)`);
  return closed.rowCount ?? 0;
}

/** Deletes one batch of records that were completed more than `ageMs` milliseconds ago. Returns how many. */
export async function forgetOldRecords(db: Queryable, ageMs: number, limit: number): Promise<number> {
  const deleted = await db.execute(sql`/* audit */
    DELETE FROM audit_log WHERE id IN (
      SELECT id FROM audit_log WHERE time_completed < now() - ${ageMs} * interval '1 millisecond'
      ORDER BY time_completed LIMIT ${limit} FOR UPDATE SKIP LOCKED)`);
  return deleted.rowCount ?? 0;
}
