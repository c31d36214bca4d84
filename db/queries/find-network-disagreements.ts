import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const disagreement = z.object({
  instanceId: z.string(),
  state: z.string(),
  vmmId: z.string().nullable(),
  knownVmmId: z.string().nullable(),
});

export type NetworkDisagreement = z.infer<typeof disagreement>;

/**
 * Where the network is out of step, which it never is in a committed state: it must know an instance by its active VMM,
 * at that VMM's sled and address, as long as the instance names one that is not `saga_unwound`, and else not at all.
 */
export async function findNetworkDisagreements(db: Queryable): Promise<NetworkDisagreement[]> {
  const result = await db.execute(sql`
    SELECT instance.id AS "instanceId", instance.state, active.id AS "vmmId", known.vmm_id AS "knownVmmId"
    FROM instance
    LEFT JOIN vmm active ON active.id = instance.active_vmm_id AND active.state <> 'saga_unwound'
    LEFT JOIN instance_network known ON known.instance_id = instance.id
    WHERE (active.id, active.sled_id, active.ip, active.port) IS DISTINCT FROM (known.vmm_id, known.sled_id, known.ip, known.port)`);
  return result.rows.map((row) => disagreement.parse(row));
}
