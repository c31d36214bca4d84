import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS, type KeyedCall } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { type AuditRecord, auditStatement } from './audit.ts';

/** A key that this call has taken, or that an earlier one of the same took. */
export interface TakenKey {
  readonly fresh: boolean;
  readonly instanceId: string;
  /** The operation that an earlier call began; `null` when none is on record. */
  readonly operationId: string | null;
}

const keyRow = z.object({
  fresh: z.boolean(),
  call: z.enum(KEYED_CALLS),
  instance_id: z.string(),
  operation_id: z.string().nullable(),
});

/**
 * Takes a client's key for a call on an instance, or finds who took it. Throws a {@link Refusal} when it was taken for
 * another call or another instance; for a `create` the instance is what it made, whichever that is. `record` is written in the same statement.
 */
export async function takeKey(
  db: Queryable,
  wanted: { key: string; call: KeyedCall; instanceId: string },
  record: AuditRecord | null = null,
): Promise<TakenKey> {
  // The update that changes nothing locks the row and returns it; xmax tells an insert from it.
  const result = await db.execute(sql`/* take-key */
    ${record === null ? sql`` : sql`WITH recorded AS (${auditStatement(record)})`}
    INSERT INTO idempotency_key AS known (key, call, instance_id) VALUES (${wanted.key}, ${wanted.call}, ${wanted.instanceId})
    ON CONFLICT (key) DO UPDATE SET key = known.key
    RETURNING (xmax = 0) AS fresh, call, instance_id, operation_id`);
  const row = keyRow.parse(result.rows[0]);
  if (row.call !== wanted.call || (wanted.call !== 'create' && row.instance_id !== wanted.instanceId)) {
    throw Refusal.invalid(
      `Idempotency-Key: ${wanted.key} was given to another call (${row.call}); a new call needs a new key`,
    );
  }
  return { fresh: row.fresh, instanceId: row.instance_id, operationId: row.operation_id };
}

/**
 * Finds what a `create` in a project with this key made; `null` when there was none. Throws a {@link Refusal} for another
 * call's key, and for one that made an instance of another project: it is nothing to this caller.
 */
export async function findCreated(db: Queryable, key: string, projectId: string): Promise<string | null> {
  const result = await db.execute(sql`
    SELECT call, instance_id, project_id FROM idempotency_key JOIN instance ON instance.id = instance_id WHERE key = ${key}`);
  const row = keyRow
    .pick({ call: true, instance_id: true })
    .extend({ project_id: z.string() })
    .optional()
    .parse(result.rows[0]);
  if (row === undefined) return null;
  if (row.call !== 'create' || row.project_id !== projectId)
    throw Refusal.invalid(
      `Idempotency-Key: ${key} was given to another call (${row.call}); a new call needs a new key`,
    );
  return row.instance_id;
}

/**
 * Records the operation that a call with a key began or joined. The first one counts. The call's audit record, by its id,
 * learns of it in the same statement: should nobody be left to complete it, the operation's end does.
 */
export async function settleKey(
  db: Queryable,
  key: string,
  operationId: string,
  auditId: string | null = null,
): Promise<void> {
  await db.execute(sql`/* settle-key */
    ${auditId === null ? sql`` : sql`WITH noted AS (UPDATE audit_log SET saga_operation_id = ${operationId} WHERE id = ${auditId})`}
    UPDATE idempotency_key SET operation_id = ${operationId} WHERE key = ${key} AND operation_id IS NULL`);
}

/** Forgets keys that are older than `ageMs` milliseconds, at most `limit` at a time. Returns how many. */
export async function forgetOldKeys(db: Queryable, ageMs: number, limit = 1_000): Promise<number> {
  const result = await db.execute(sql`/* forget-keys */
    DELETE FROM idempotency_key WHERE key IN (
      SELECT key FROM idempotency_key WHERE time_created < now() - ${ageMs} * interval '1 millisecond' LIMIT ${limit})`);
  return result.rowCount ?? 0;
}
