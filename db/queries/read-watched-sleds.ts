import { ne, sql } from 'drizzle-orm';
import type { Database } from '../connect.ts';
import { sled } from '../schema.ts';

export interface WatchedSled {
  readonly id: string;
  readonly name: string;
  readonly address: string;
  /** As far as is on record. */
  readonly silent: boolean;
  /** That it answers was written within the last minute. */
  readonly answeredLately: boolean;
  readonly agentId: string | null;
  readonly agentVersion: string | null;
  readonly agentTrouble: readonly string[];
  readonly cpuModels: readonly string[] | null;
}

/** The sleds that the watcher asks what runs there, with what is known of them: all but those that an operator has expunged. */
export async function readWatchedSleds(db: Database): Promise<WatchedSled[]> {
  return db
    .select({
      id: sled.id,
      name: sled.name,
      address: sled.address,
      silent: sql<boolean>`silent_since IS NOT NULL`,
      answeredLately: sql<boolean>`coalesce(last_answered_at > now() - interval '1 minute', false)`,
      agentId: sled.agentId,
      agentVersion: sled.agentVersion,
      agentTrouble: sled.agentTrouble,
      cpuModels: sled.cpuModels,
    })
    .from(sled)
    .where(ne(sled.policy, 'expunged'));
}
