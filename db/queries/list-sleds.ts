import { and, asc, gt, ne } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { sled } from '../schema.ts';
import { type CountedSled, unheard, vmmCount } from './read-sled.ts';

/** Lists at most `limit` sleds that aren't expunged, by id, after the one whose id is `after`. */
export async function listSleds(
  db: Queryable,
  { after, limit }: { readonly after: string | null; readonly limit: number },
): Promise<CountedSled[]> {
  return db
    .select({ sled, vmmCount, unheard })
    .from(sled)
    .where(and(ne(sled.policy, 'expunged'), after === null ? undefined : gt(sled.id, after)))
    .orderBy(asc(sled.id))
    .limit(limit);
}
