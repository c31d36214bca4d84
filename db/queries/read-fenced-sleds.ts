import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { LATE_AFTER_LEASES } from '../../model/lease.ts';
import type { Queryable } from '../connect.ts';

const fencedSled = z.object({ id: z.string(), name: z.string(), late: z.boolean() });

/** The sleds with a lease that were neither expunged nor declared dead, and which of them miss renewals. */
export async function readFencedSleds(db: Queryable) {
  const result = await db.execute(sql`
    SELECT id, name, lease_renewed_at + lease_ms * ${LATE_AFTER_LEASES}::float8 * interval '1 millisecond' <= now() AS late
    FROM sled WHERE lease_ms IS NOT NULL AND policy <> 'expunged' AND expunging_since IS NULL AND time_declared_dead IS NULL ORDER BY name`);
  return result.rows.map((row) => fencedSled.parse(row));
}

const deadSled = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  keptAgentId: z.string().nullable(),
});

/** The sleds without fencing that were declared dead: only their inventory can prove what they run. */
export async function readDeadSledsWithoutFencing(db: Queryable) {
  const result = await db.execute(sql`
    SELECT id, name, address, kept_agent_id AS "keptAgentId" FROM sled
    WHERE time_declared_dead IS NOT NULL AND lease_ms IS NULL AND policy <> 'expunged' AND expunging_since IS NULL ORDER BY name`);
  return result.rows.map((row) => deadSled.parse(row));
}

/** The sleds that an operator has expunged, and whose guests may run still. */
export async function readLeavingSleds(db: Queryable) {
  const result = await db.execute(sql`
    SELECT id, name, address, kept_agent_id AS "keptAgentId" FROM sled WHERE expunging_since IS NOT NULL AND policy <> 'expunged' ORDER BY name`);
  return result.rows.map((row) => deadSled.parse(row));
}
