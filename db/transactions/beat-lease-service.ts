import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/**
 * Writes down that the control plane can take renewals of leases now, by the database's clock; and, where it could not for
 * longer than `shortestGapMs` milliseconds, the gap. Where the clock went backward, the times of renewals are set
 * back with it, so that every lease begins anew. APIs do so beside each other: one that is away among several is no gap.
 */
export async function beatLeaseService(db: Queryable, shortestGapMs: number): Promise<void> {
  await db.execute(sql`/* beat-lease-service */
    WITH beat AS (
      UPDATE lease_service SET last_beat_at = clock_timestamp()
      FROM (SELECT last_beat_at AS began_at FROM lease_service FOR UPDATE) before
      RETURNING began_at, last_beat_at AS ended_at
    ), back AS (
      UPDATE sled SET lease_renewed_at = beat.ended_at, lease_confirmed_at = least(lease_confirmed_at, beat.ended_at) FROM beat
      WHERE beat.ended_at < beat.began_at AND lease_renewed_at > beat.ended_at
    ), outdated AS (
      UPDATE lease_service_gap gap SET began_at = least(gap.began_at, beat.ended_at), ended_at = beat.ended_at FROM beat
      WHERE beat.ended_at < beat.began_at AND gap.ended_at > beat.ended_at
    )
    INSERT INTO lease_service_gap (began_at, ended_at)
    SELECT began_at, ended_at FROM beat
    WHERE ended_at < began_at OR ended_at - began_at > ${shortestGapMs}::float8 * interval '1 millisecond'`);
}

/** Forgets gaps that no lease can depend on any more: those that ended more than `olderThanMs` milliseconds ago. */
export async function forgetOldGaps(db: Queryable, olderThanMs: number): Promise<number> {
  const result = await db.execute(sql`/* beat-lease-service */
    DELETE FROM lease_service_gap WHERE ended_at < now() - ${olderThanMs}::float8 * interval '1 millisecond' RETURNING id`);
  return result.rows.length;
}
