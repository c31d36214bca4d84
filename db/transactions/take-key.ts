import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS, type KeyedCall } from '../../model/states.ts';
import { type AuditRecord, auditStatement } from '../audit-record.ts';
import type { Queryable } from '../connect.ts';

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
