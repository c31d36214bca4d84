/**
 * What the reaper forgets for good: rows of what has been over for longer than the operator keeps it. `reap.ts` is its other
 * half, which puts right what a fault has left behind.
 *
 * Rows go in the order of the foreign keys (operations, migrations, VMMs, instances, projects), each when it is due itself and
 * nothing names it any more: so a pass can end anywhere, and the next one goes on from there. What is open, linked, reserved,
 * named by a client's key, or of a saga whose workflow Temporal still has open, is never due, however old it is: such a saga may
 * run again from its beginning, and finds out by these rows that it is over. Each statement takes a batch, finds it by an index,
 * waits for no lock, and passes over what someone else is just writing to.
 *
 * An unknown VMM is one that is gone, everywhere: to a report, to the watcher, to a sled that proves what it runs.
 */
import { type SQL, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** What a batch of the reaper goes by. */
export interface ExpiryRequest {
  /** How long what is over is kept, in milliseconds, on the database's clock. */
  readonly keptMs: number;
  /** How many rows the statement deletes at most. */
  readonly limit: number;
}

/** The sagas whose workflows are open: their operations, and what these made, are left as they are. */
export interface OpenSagas {
  /** The ids of their operations, which are the run ids of their workflows. */
  readonly openOperationIds: readonly string[];
}

/** What was over before this is due. */
const cutoff = ({ keptMs }: ExpiryRequest) => sql`now() - ${keptMs}::float8 * interval '1 millisecond'`;
const openOperations = ({ openOperationIds }: OpenSagas) =>
  sql`SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(openOperationIds)}::jsonb)`;

/** Deletes the rows of a table whose `key` is in `due`, a query that locks them; it runs once, whatever the plan. */
async function reap(db: Queryable, table: string, key: string, due: SQL): Promise<number> {
  const [from, by] = [sql.identifier(table), sql.identifier(key)];
  const deleted = await db.execute(sql`/* reap-expired */
    WITH due AS MATERIALIZED (${due}) DELETE FROM ${from} USING due WHERE ${from}.${by} = due.${by}`);
  return deleted.rowCount ?? 0;
}

/** Deletes one batch of operations that ended long ago and that no client's key names. Returns how many. */
export function reapOperations(db: Queryable, request: ExpiryRequest & OpenSagas): Promise<number> {
  return reap(
    db,
    'operation',
    'id',
    sql`
      SELECT operation.id FROM operation
      WHERE time_ended < ${cutoff(request)} AND operation.id NOT IN (${openOperations(request)})
        AND NOT EXISTS (SELECT 1 FROM idempotency_key key WHERE key.operation_id = operation.id)
      ORDER BY time_ended LIMIT ${request.limit} FOR UPDATE OF operation SKIP LOCKED`,
  );
}

/**
 * Deletes one batch of migrations that are long over, and that no instance names. One whose source lives stays while it says
 * that the guest has left; one whose target lives stays until the source's row is due: each living VMM keeps at most
 * the one that brought it, and nothing that a decision about it rests on is lost. Returns how many.
 */
export function reapMigrations(db: Queryable, request: ExpiryRequest): Promise<number> {
  return reap(
    db,
    'migration',
    'id',
    sql`
      SELECT past.id FROM migration past JOIN instance ON instance.id = past.instance_id
      JOIN vmm source ON source.id = past.source_vmm_id JOIN vmm target ON target.id = past.target_vmm_id
      CROSS JOIN LATERAL (SELECT coalesce(source.time_deleted < ${cutoff(request)}, false) AS source_due,
        coalesce(target.time_deleted < ${cutoff(request)}, false) AS target_due) judged
      WHERE past.time_created < ${cutoff(request)}
        AND coalesce(greatest(past.time_source_updated, past.time_target_updated), past.time_created) < ${cutoff(request)}
        AND past.id IS DISTINCT FROM instance.migration_id
        AND (source_due OR past.source_state <> 'completed' AND target_due)
        AND (target_due OR past.target_state = 'completed')
      ORDER BY past.time_created LIMIT ${request.limit}
      FOR UPDATE OF past SKIP LOCKED FOR KEY SHARE OF instance SKIP LOCKED`,
  );
}

/**
 * Deletes one batch of VMMs whose rows were deleted (softly) long ago, and that nothing names: no instance, migration,
 * reservation or network entry, and no operation that is not over. Returns how many.
 */
export function reapPastVmms(db: Queryable, request: ExpiryRequest & OpenSagas): Promise<number> {
  return reap(
    db,
    'vmm',
    'id',
    sql`
      SELECT past.id FROM vmm past JOIN instance ON instance.id = past.instance_id
      WHERE past.time_deleted < ${cutoff(request)}
        AND past.id IS DISTINCT FROM instance.active_vmm_id AND past.id IS DISTINCT FROM instance.target_vmm_id
        AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.vmm_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM migration WHERE migration.source_vmm_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM migration WHERE migration.target_vmm_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM instance_network known WHERE known.vmm_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM operation maker WHERE maker.vmm_id = past.id
          AND (maker.time_ended IS NULL OR maker.id IN (${openOperations(request)})))
      ORDER BY past.time_deleted LIMIT ${request.limit}
      FOR UPDATE OF past SKIP LOCKED FOR KEY SHARE OF instance SKIP LOCKED`,
  );
}

/**
 * Deletes one batch of instances that were deleted (softly) long ago and of which nothing is left but their entry on the
 * network, which goes with them. How far such entries have been forgotten is written down: a poller that may not have read
 * them begins anew. Returns how many.
 */
export async function reapInstances(db: Queryable, request: ExpiryRequest): Promise<number> {
  const deleted = await db.execute(sql`/* reap-expired */
    WITH due AS MATERIALIZED (
      SELECT past.id FROM instance past
      WHERE past.time_deleted < ${cutoff(request)} AND past.state = 'destroyed'
        AND NOT EXISTS (SELECT 1 FROM vmm WHERE vmm.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM migration WHERE migration.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM operation WHERE operation.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM idempotency_key key WHERE key.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM sled_reservation held WHERE held.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM provisioning_charge charge WHERE charge.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM affinity_group_member member WHERE member.instance_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM instance_network known WHERE known.instance_id = past.id AND known.vmm_id IS NOT NULL)
      ORDER BY past.time_deleted LIMIT ${request.limit} FOR UPDATE OF past SKIP LOCKED
    ), forgotten AS (
      DELETE FROM instance_network known USING due WHERE known.instance_id = due.id RETURNING known.changed_in
    ), noted AS (
      UPDATE network_horizon SET forgotten_to = newest.changed_in
      FROM (SELECT changed_in FROM forgotten ORDER BY changed_in DESC LIMIT 1) newest
      WHERE newest.changed_in > forgotten_to
    )
    DELETE FROM instance USING due WHERE instance.id = due.id`);
  return deleted.rowCount ?? 0;
}

/** Deletes one batch of projects that were deleted (softly) long ago and of which nothing is left. Returns how many. */
export function reapProjects(db: Queryable, request: ExpiryRequest): Promise<number> {
  return reap(
    db,
    'project',
    'id',
    sql`
      SELECT past.id FROM project past
      WHERE past.time_deleted < ${cutoff(request)}
        AND NOT EXISTS (SELECT 1 FROM instance WHERE instance.project_id = past.id AND instance.time_deleted IS NULL)
        AND NOT EXISTS (SELECT 1 FROM instance WHERE instance.project_id = past.id AND instance.time_deleted IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM provisioning_charge charge WHERE charge.project_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM affinity_group WHERE affinity_group.project_id = past.id)
        AND NOT EXISTS (SELECT 1 FROM access_token token WHERE token.project_id = past.id)
      ORDER BY past.time_deleted LIMIT ${request.limit} FOR UPDATE OF past SKIP LOCKED`,
  );
}

/** Deletes one batch of tokens that were revoked, or expired, long ago. Returns how many. */
export function reapTokens(db: Queryable, request: ExpiryRequest): Promise<number> {
  return reap(
    db,
    'access_token',
    'id',
    sql`
      SELECT id FROM access_token WHERE time_revoked < ${cutoff(request)} OR time_expires < ${cutoff(request)}
      LIMIT ${request.limit} FOR UPDATE SKIP LOCKED`,
  );
}

/** Deletes one batch of sleds' certificates that expired long ago: of one that is unknown is taken as little. Returns how many. */
export function reapCertificates(db: Queryable, request: ExpiryRequest): Promise<number> {
  return reap(
    db,
    'sled_certificate',
    'serial',
    sql`
      SELECT serial FROM sled_certificate WHERE time_expires < ${cutoff(request)}
      LIMIT ${request.limit} FOR UPDATE SKIP LOCKED`,
  );
}

/** Deletes one batch of invitations that expired long ago, used or not. Returns how many. */
export function reapInvites(db: Queryable, request: ExpiryRequest): Promise<number> {
  return reap(
    db,
    'sled_invite',
    'id',
    sql`
      SELECT id FROM sled_invite WHERE time_expires < ${cutoff(request)}
      LIMIT ${request.limit} FOR UPDATE SKIP LOCKED`,
  );
}
