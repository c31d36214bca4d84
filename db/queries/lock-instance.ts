import { sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Queryable } from '../connect.ts';
import { type InstanceRecord, readInstance } from './read-instance.ts';

/**
 * Locks an instance's row until the transaction ends, then reads it as {@link readInstance} does. Throws a {@link Refusal}
 * for one that isn't there or is deleted.
 */
export async function lockInstance(transaction: Queryable, instanceId: string): Promise<InstanceRecord> {
  await transaction.execute(sql`SELECT 1 FROM instance WHERE id = ${instanceId} FOR UPDATE`);
  const record = await readInstance(transaction, instanceId);
  if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', instanceId);
  return record;
}
