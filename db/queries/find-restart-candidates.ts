import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { AutoRestartFacts, FailedStarts } from '../../model/auto-restart.ts';
import type { Queryable } from '../connect.ts';
import { type InstanceRecord, readInstances } from './read-instance.ts';

/** What the decision needs to know of an instance, but how its last starts failed. */
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

/** An instance that may have to be started again, and how its last starts failed. */
export interface RestartCandidate extends InstanceRecord {
  readonly failedStarts: FailedStarts | null;
}

const candidateRow = z.object({
  id: z.string(),
  failures: z.coerce.number(),
  lastEnded: z.coerce.date().nullable(),
  lastStatus: z.number().nullable(),
});

/** The starts of an instance that count: within this time the longest pauses let more of them happen than need be known. */
const recentStarts = sql.raw(
  `WHERE operation.instance_id = instance.id AND kind = 'start' AND operation.time_started > now() - interval '6 hours'`,
);

/**
 * At most `limit` instances that may have to be started again, by what an index finds quickly: those whose cooldown is
 * over, and whose starts have not failed lately, come first, those by their priority, and within one in an order of chance, so that
 * none is passed over for ever. The decision is made on each record. That starts have failed is remembered by their operations.
 */
export async function findRestartCandidates(db: Queryable, limit: number): Promise<RestartCandidate[]> {
  const result = await db.execute(sql`
    SELECT instance.id, failed.failures, failed.last_ended AS "lastEnded", failed.last_status AS "lastStatus" FROM instance
    CROSS JOIN LATERAL (
      SELECT count(*) AS failures, max(time_ended) AS last_ended, (array_agg((error->>'status')::int ORDER BY time_ended DESC))[1] AS last_status
      FROM operation ${recentStarts} AND NOT succeeded
        AND time_ended > coalesce((SELECT max(time_ended) FROM operation ${recentStarts} AND succeeded), '-infinity')
    ) failed
    WHERE time_deleted IS NULL AND intended_state = 'running'
      AND (state = 'failed' OR last_start_reason = 'auto_restart' AND (state = 'no_vmm'
        OR state = 'vmm' AND EXISTS (SELECT 1 FROM vmm WHERE vmm.id = instance.active_vmm_id AND vmm.state = 'saga_unwound')))
    ORDER BY coalesce(time_last_auto_restarted + auto_restart_cooldown_seconds * interval '1 second' > now(), false)
      OR failures > 1 OR coalesce(last_status < 500, false),
      restart_priority, random()
    LIMIT ${limit}`);
  const rows = result.rows.map((row) => candidateRow.parse(row));
  const records = await readInstances(
    db,
    rows.map(({ id }) => id),
  );
  const byId = new Map(records.map((record) => [record.instance.id, record]));
  return rows.flatMap(({ id, failures: count, lastEnded, lastStatus }) => {
    const record = byId.get(id);
    const failedStarts = lastEnded === null || lastStatus === null ? null : { count, lastEnded, lastStatus };
    return record === undefined ? [] : [{ ...record, failedStarts }];
  });
}

/** How many automatic starts are under way. One that was begun a moment ago, and has claimed nothing yet, is not seen. */
export async function countOpenRestarts(db: Queryable): Promise<number> {
  const result = await db.execute(sql`
    SELECT count(*)::int AS open FROM operation JOIN instance ON instance.id = operation.instance_id
    WHERE operation.time_ended IS NULL AND operation.kind = 'start' AND instance.last_start_reason = 'auto_restart'`);
  return z.number().parse(result.rows[0]?.open);
}
