import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** Makes sure that a VMM id is taken: where its claim has not arrived, it never will. */
export async function burnVmmId(db: Queryable, vmm: { instanceId: string; vmmId: string }): Promise<void> {
  await db.execute(sql`/* burn-vmm-id */
    INSERT INTO vmm (id, instance_id, state, unwinding_since, time_deleted)
    SELECT ${vmm.vmmId}, id, 'saga_unwound', now(), now() FROM instance WHERE id = ${vmm.instanceId}
    ON CONFLICT (id) DO NOTHING`);
}
