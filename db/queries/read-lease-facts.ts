import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { LeaseFacts } from '../../model/lease.ts';
import type { Queryable } from '../connect.ts';

const factsRow = z.object({
  now_ms: z.coerce.number(),
  renewed_ms: z.coerce.number(),
  lease_ms: z.number(),
  last_beat_ms: z.coerce.number(),
  gaps: z.array(z.object({ began_ms: z.number(), ended_ms: z.number() })),
});

const ms = (moment: string) => sql.raw(`extract(epoch FROM ${moment}) * 1000`);

/**
 * Reads what a verdict on a sled's lease depends on, in one statement; `null` for a sled that has none, or is expunged. Times
 * are milliseconds on the database's clock, which is read after the sled's row was: a caller that has locked it has the last
 * renewal.
 */
export async function readLeaseFacts(db: Queryable, sledId: string): Promise<LeaseFacts | null> {
  const result = await db.execute(sql`
    SELECT ${ms('clock_timestamp()')} AS now_ms, ${ms('sled.lease_renewed_at')} AS renewed_ms, sled.lease_ms,
      ${ms('lease_service.last_beat_at')} AS last_beat_ms,
      coalesce((SELECT jsonb_agg(jsonb_build_object('began_ms', ${ms('gap.began_at')}, 'ended_ms', ${ms('gap.ended_at')}))
        FROM lease_service_gap gap WHERE gap.ended_at > sled.lease_renewed_at), '[]'::jsonb) AS gaps
    FROM sled CROSS JOIN lease_service
    WHERE sled.id = ${sledId} AND sled.lease_ms IS NOT NULL AND sled.policy <> 'expunged'`);
  const found = result.rows[0];
  if (found === undefined) return null;
  const row = factsRow.parse(found);
  return {
    nowMs: row.now_ms,
    renewedMs: row.renewed_ms,
    leaseMs: row.lease_ms,
    lastBeatMs: row.last_beat_ms,
    gaps: row.gaps.map((gap) => ({ beganMs: gap.began_ms, endedMs: gap.ended_ms })),
  };
}
