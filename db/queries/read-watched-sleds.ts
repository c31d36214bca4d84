import { ne } from 'drizzle-orm';
import type { Database } from '../connect.ts';
import { sled } from '../schema.ts';

/** The sleds that the watcher asks what runs there: all but those that an operator has expunged. */
export async function readWatchedSleds(db: Database): Promise<{ id: string; name: string; address: string }[]> {
  return db
    .select({ id: sled.id, name: sled.name, address: sled.address })
    .from(sled)
    .where(ne(sled.policy, 'expunged'));
}
