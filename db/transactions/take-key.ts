import { type SQL, sql } from 'drizzle-orm';
import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS, type KeyedCall } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/** A key that this call has taken, or that an earlier one of the same took. */
export interface TakenKey {
  readonly fresh: boolean;
  readonly call: KeyedCall;
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
 * another call or another instance; for a `create` the instance is what it made, whichever that is.
 */
export async function takeKey(
  db: Queryable,
  wanted: { key: string; call: KeyedCall; instanceId: string },
): Promise<TakenKey> {
  const result = await db.execute(sql`/* take-key */
    ${takeKeyStatement(sql`VALUES (${wanted.key}, ${wanted.call}, ${wanted.instanceId})`)}`);
  return requireSameCall(readTakenKey(result.rows[0]), wanted);
}

/** The statement that takes the keys in `rows` (key, call, instance); inside another one its rows are for {@link readTakenKey}. */
export function takeKeyStatement(rows: SQL): SQL {
  // The update that changes nothing locks the row and returns it; xmax tells an insert from it.
  return sql`INSERT INTO idempotency_key AS known (key, call, instance_id) ${rows}
    ON CONFLICT (key) DO UPDATE SET key = known.key
    RETURNING (xmax = 0) AS fresh, call, instance_id, operation_id`;
}

/** A row of {@link takeKeyStatement}. Throws when it is none. */
export function readTakenKey(found: unknown): TakenKey {
  const { instance_id: instanceId, operation_id: operationId, ...row } = keyRow.parse(found);
  return { ...row, instanceId, operationId };
}

/** The key again; throws a {@link Refusal} when it was taken for another call or another instance, as {@link takeKey}. */
export function requireSameCall(
  taken: TakenKey,
  wanted: { readonly key: string; readonly call: KeyedCall; readonly instanceId: string },
): TakenKey {
  if (taken.call !== wanted.call || (wanted.call !== 'create' && taken.instanceId !== wanted.instanceId)) {
    throw Refusal.invalid(
      `Idempotency-Key: ${wanted.key} was given to another call (${taken.call}); a new call needs a new key`,
    );
  }
  return taken;
}
