import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { AutoRestartFacts } from '../../model/auto-restart.ts';
import type { Queryable } from '../connect.ts';
import { type InstanceRecord, readInstances } from './read-instance.ts';

/** What the decision needs to know of an instance. */
export function autoRestartFacts({ instance, externalState }: InstanceRecord): AutoRestartFacts {
  return {
    externalState,
    intendedState: instance.intendedState,
    policy: instance.autoRestartPolicy,
    lastStartReason: instance.lastStartReason,
    timeLastAutoRestarted: instance.timeLastAutoRestarted,
    cooldownSeconds: instance.autoRestartCooldownSeconds,
  };
}

/**
 * At most `limit` instances that may have to be started again, by what an index finds quickly: those whose cooldown is
 * over come first, those by their priority, and within one in an order of chance, so that none is passed over for ever. The
 * decision is made on each record.
 */
export async function findRestartCandidates(db: Queryable, limit: number): Promise<InstanceRecord[]> {
  const result = await db.execute(sql`
    SELECT id FROM instance
    WHERE time_deleted IS NULL AND intended_state = 'running'
      AND (state = 'failed' OR last_start_reason = 'auto_restart' AND (state = 'no_vmm'
        OR state = 'vmm' AND EXISTS (SELECT 1 FROM vmm WHERE vmm.id = instance.active_vmm_id AND vmm.state = 'saga_unwound')))
    ORDER BY coalesce(time_last_auto_restarted + auto_restart_cooldown_seconds * interval '1 second' > now(), false),
      restart_priority, random()
    LIMIT ${limit}`);
  const ids = result.rows.map((row) => String(row.id));
  const byId = new Map((await readInstances(db, ids)).map((record) => [record.instance.id, record]));
  return ids.map((id) => byId.get(id)).filter((record) => record !== undefined);
}

/** How many automatic starts are under way. One that was begun a moment ago, and has claimed nothing yet, is not seen. */
export async function countOpenRestarts(db: Queryable): Promise<number> {
  const result = await db.execute(sql`
    SELECT count(*)::int AS open FROM operation JOIN instance ON instance.id = operation.instance_id
    WHERE operation.time_ended IS NULL AND operation.kind = 'start' AND instance.last_start_reason = 'auto_restart'`);
  return z.number().parse(result.rows[0]?.open);
}
