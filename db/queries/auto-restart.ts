/** What automatic restarts are decided on. */
import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { AutoRestartFacts } from '../../model/auto-restart.ts';
import type { Queryable } from '../connect.ts';
import { takesVmms } from './leases.ts';
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

/** The database's clock: it writes the times that cooldowns count from, so it is the one to read them by. */
export async function readDatabaseTime(db: Queryable): Promise<Date> {
  const result = await db.execute(sql`SELECT now() AS now`);
  return z.coerce.date().parse(result.rows[0]?.now);
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

const room = z.object({ id: z.string(), cpus: z.coerce.number(), memoryBytes: z.coerce.number() });
export type Room = z.infer<typeof room>;

/** What is free on each sled that takes new VMMs: threads and bytes. */
export async function readSledRoom(db: Queryable): Promise<Room[]> {
  const result = await db.execute(sql`
    SELECT id, threads - reserved_threads AS cpus, memory_bytes - reserved_memory_bytes AS "memoryBytes"
    FROM sled WHERE ${takesVmms}`);
  return result.rows.map((row) => room.parse(row));
}

/** What is left of each of these projects' quotas; no quota is more than anything. */
export async function readQuotaRoom(db: Queryable, projectIds: readonly string[]): Promise<Room[]> {
  const result = await db.execute(sql`
    SELECT id, coalesce(quota_cpus - charged_cpus, 2147483647) AS cpus,
      coalesce(quota_memory_bytes - charged_memory_bytes, 9007199254740991) AS "memoryBytes"
    FROM project WHERE id IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(projectIds)}::jsonb))`);
  return result.rows.map((row) => room.parse(row));
}
