import { sql } from 'drizzle-orm';
import { hostOf } from '../../model/host-address.ts';
import type { Queryable } from '../connect.ts';

/**
 * Has the VMMs of a sled, whose row is locked and has its new address by now, be where it is: each keeps its port. The network
 * follows in the same transaction.
 */
export async function moveVmmsOf(transaction: Queryable, sledId: string, address: string): Promise<void> {
  const host = hostOf(address);
  await transaction.execute(sql`/* move-sled */
    UPDATE vmm SET ip = ${host} WHERE sled_id = ${sledId} AND time_deleted IS NULL AND ip <> ${host}`);
  await transaction.execute(sql`/* move-sled */
    UPDATE instance_network SET ip = ${host}, generation = generation + 1, changed_in = pg_current_xact_id(), time_modified = now()
    WHERE sled_id = ${sledId} AND ip <> ${host}`);
}
