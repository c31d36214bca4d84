import { sql } from 'drizzle-orm';
import type { Attempt } from '../../model/attempt.ts';
import type { Queryable } from '../connect.ts';

/** Makes sure that a VMM id is taken: where its claim has not arrived, it never will. */
export async function burnVmmId(db: Queryable, attempt: Pick<Attempt, 'instanceId' | 'vmmId'>): Promise<void> {
  await db.execute(sql`/* burn-vmm-id */
    INSERT INTO vmm (id, instance_id, state, unwinding_since, time_deleted)
    SELECT ${attempt.vmmId}, id, 'saga_unwound', now(), now() FROM instance WHERE id = ${attempt.instanceId}
    ON CONFLICT (id) DO NOTHING`);
}
