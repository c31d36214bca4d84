/** What is known of sleds' leases, and what a verdict depends on. Times on the database's clock. */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { LATE_AFTER_LEASES, type LeaseFacts, tolerableGapMs } from '../../model/lease.ts';
import type { Queryable } from '../connect.ts';

/** A sled that takes new VMMs: in service, not declared dead, and, with fencing, lately sure of its lease. */
export const takesVmms = sql.raw(`(sled.policy = 'in_service' AND sled.time_declared_dead IS NULL
  AND (sled.lease_ms IS NULL OR sled.lease_confirmed_at + sled.lease_ms * ${LATE_AFTER_LEASES} * interval '1 millisecond' > now()))`);

const factsRow = z.object({
  now_ms: z.coerce.number(),
  renewed_ms: z.coerce.number(),
  lease_ms: z.number(),
  last_beat_ms: z.coerce.number(),
  gaps: z.array(z.object({ began_ms: z.number(), ended_ms: z.number() })),
});

const ms = (moment: string) => sql.raw(`extract(epoch FROM ${moment}) * 1000`);

/**
 * Reads what a verdict on a sled's lease depends on, in one statement; `null` for a sled that has none, is expunged or was
 * declared dead. The clock is read after the sled's row was: a caller that has locked it has the last renewal.
 */
export async function readLeaseFacts(db: Queryable, sledId: string): Promise<LeaseFacts | null> {
  const result = await db.execute(sql`
    SELECT ${ms('clock_timestamp()')} AS now_ms, ${ms('sled.lease_renewed_at')} AS renewed_ms, sled.lease_ms,
      ${ms('lease_service.last_beat_at')} AS last_beat_ms,
      coalesce((SELECT jsonb_agg(jsonb_build_object('began_ms', ${ms('gap.began_at')}, 'ended_ms', ${ms('gap.ended_at')}))
        FROM lease_service_gap gap WHERE gap.ended_at > sled.lease_renewed_at), '[]'::jsonb) AS gaps
    FROM sled CROSS JOIN lease_service
    WHERE sled.id = ${sledId} AND sled.lease_ms IS NOT NULL AND sled.policy <> 'expunged' AND sled.time_declared_dead IS NULL`);
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

const fencedSled = z.object({ id: z.string(), name: z.string(), late: z.boolean() });

/** The sleds with a lease that are neither expunged nor declared dead, and which of them miss renewals. */
export async function readFencedSleds(db: Queryable) {
  const result = await db.execute(sql`
    SELECT id, name, lease_renewed_at + lease_ms * ${LATE_AFTER_LEASES}::float8 * interval '1 millisecond' <= now() AS late
    FROM sled WHERE lease_ms IS NOT NULL AND policy <> 'expunged' AND time_declared_dead IS NULL ORDER BY name`);
  return result.rows.map((row) => fencedSled.parse(row));
}

const deadSled = z.object({ id: z.string(), name: z.string(), address: z.string() });

/** The sleds without fencing that were declared dead: only their inventory can prove what they run. */
export async function readDeadSledsWithoutFencing(db: Queryable) {
  const result = await db.execute(sql`
    SELECT id, name, address FROM sled
    WHERE time_declared_dead IS NOT NULL AND lease_ms IS NULL AND policy <> 'expunged' ORDER BY name`);
  return result.rows.map((row) => deadSled.parse(row));
}

/** Whether the control plane was away for a part of a lease of `leaseMs` milliseconds; for messages. */
export function wasAway(facts: LeaseFacts): boolean {
  return facts.gaps.some(({ beganMs, endedMs }) => endedMs - beganMs > tolerableGapMs(facts.leaseMs));
}
