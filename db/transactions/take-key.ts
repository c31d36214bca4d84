import { type SQL, sql } from 'drizzle-orm';
import { z } from 'zod';
import { FINAL_REFUSALS, type KeptRefusal, Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS, type KeyedCall } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';

/** A client's key, with the request that it is to name. */
export interface RequestKey {
  readonly value: string;
  readonly call: KeyedCall;
  /** What the request asks for, as a SHA-256 hash in hexadecimal: a key never names what has another one. */
  readonly digest: string;
  /** This sending of the request, a UUID: of several at once, one may begin its saga. */
  readonly sending: string;
}

/** A key that this request has taken, or that an earlier sending of the same has. */
export interface TakenKey {
  readonly fresh: boolean;
  /** Whether this sending may begin the saga: it was the first, or no other one is at it any more. */
  readonly mine: boolean;
  readonly call: KeyedCall;
  readonly digest: string;
  /** `null` for a create that was refused. */
  readonly instanceId: string | null;
  /** Why the request was refused, where that was final; `null` where it was not. */
  readonly refusal: KeptRefusal | null;
  /** The operation that the request began; `null` when none is on record. */
  readonly operationId: string | null;
}

/**
 * How long a sending may take to begin its saga before another one may, in milliseconds: longer than a call to Temporal can
 * take. One that takes longer, since an earlier run is closing, takes the key once more before it begins.
 */
export const KEY_TURN_MS = 20_000;

/** A refusal as a key's row has it. */
export const keptRefusal = z.object({ code: z.enum(FINAL_REFUSALS), message: z.string() }).nullable();

const keyRow = z.object({
  fresh: z.boolean(),
  call: z.enum(KEYED_CALLS),
  digest: z.string(),
  instance_id: z.string().nullable(),
  operation_id: z.string().nullable(),
  refusal: keptRefusal,
  taken_by: z.string(),
});

/**
 * Takes a client's key for a request about an instance, or finds who took it. Throws a {@link Refusal} when it names another
 * request; for a `create` the instance is what it made, whichever that is.
 */
export async function takeKey(db: Queryable, key: RequestKey, instanceId: string): Promise<TakenKey> {
  const result = await db.execute(sql`/* take-key */
    ${takeKeyStatement(sql`VALUES (${key.value}::uuid, ${key.call}::keyed_call, ${instanceId}::uuid, ${restOf(key)})`)}`);
  return requireSameRequest(readTakenKey(result.rows[0], key), key, instanceId);
}

/** The last columns of a row of {@link takeKeyStatement}, after key, call and instance. */
export function restOf({ digest, sending }: RequestKey): SQL {
  return sql`decode(${digest}, 'hex'), ${sending}::uuid, now() + ${KEY_TURN_MS} * interval '1 millisecond'`;
}

/** The statement that takes the keys in `rows`; inside another one its rows are for {@link readTakenKey}. */
export function takeKeyStatement(rows: SQL): SQL {
  // The update locks the row and returns it, whether or not it changes anything; xmax tells an insert from it.
  const free = sql`known.operation_id IS NULL AND known.refusal IS NULL
    AND (known.request_digest, known.call, known.instance_id)
      = (excluded.request_digest, excluded.call, excluded.instance_id)
    AND (known.taken_by = excluded.taken_by OR known.taken_until IS NULL OR known.taken_until < now())`;
  return sql`INSERT INTO idempotency_key AS known
      (key, call, instance_id, request_digest, taken_by, taken_until) ${rows}
    ON CONFLICT (key) DO UPDATE SET
      taken_by = CASE WHEN ${free} THEN excluded.taken_by ELSE known.taken_by END,
      taken_until = CASE WHEN ${free} THEN excluded.taken_until ELSE known.taken_until END
    RETURNING (xmax = 0) AS fresh, call, encode(request_digest, 'hex') AS digest, instance_id, operation_id, refusal, taken_by`;
}

/** A row of {@link takeKeyStatement}. Throws when it is none. */
export function readTakenKey(found: unknown, { sending }: RequestKey): TakenKey {
  const { instance_id: instanceId, operation_id: operationId, taken_by: takenBy, ...row } = keyRow.parse(found);
  return { ...row, instanceId, operationId, mine: takenBy === sending };
}

/** The key again; throws a {@link Refusal} when it names another request, as {@link takeKey}. */
export function requireSameRequest(taken: TakenKey, key: RequestKey, instanceId: string): TakenKey {
  const same = taken.call === key.call && taken.digest === key.digest;
  if (!same || (key.call !== 'create' && taken.instanceId !== instanceId)) throw Refusal.keyReused(key.value);
  return taken;
}
