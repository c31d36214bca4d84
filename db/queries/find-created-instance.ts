import { sql } from 'drizzle-orm';
import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { KEYED_CALLS } from '../../model/states.ts';
import type { Queryable } from '../connect.ts';
import { keptRefusal, type RequestKey } from '../transactions/take-key.ts';

const createdRow = z.object({
  call: z.enum(KEYED_CALLS),
  digest: z.string(),
  instance_id: z.string().nullable(),
  refusal: keptRefusal,
});

/**
 * Finds what a `create` with this key made; `null` when there was none. Throws a {@link Refusal} for a key that names another
 * request, one in another project among them: what that made is nothing to this caller. Throws what the same request was
 * refused with before.
 */
export async function findCreated(db: Queryable, key: RequestKey): Promise<string | null> {
  const result = await db.execute(sql`
    SELECT call, encode(request_digest, 'hex') AS digest, instance_id, refusal FROM idempotency_key WHERE key = ${key.value}`);
  const row = createdRow.optional().parse(result.rows[0]);
  if (row === undefined) return null;
  if (row.call !== key.call || row.digest !== key.digest) throw Refusal.keyReused(key.value);
  if (row.refusal !== null) throw new Refusal(row.refusal.code, row.refusal.message);
  return row.instance_id;
}
