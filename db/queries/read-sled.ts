import { and, eq, ne, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { goneStates } from '../gone-states.ts';
import { sled } from '../schema.ts';

export type SledRow = typeof sled.$inferSelect;

/** A sled, and how many VMMs live on it. */
export interface CountedSled {
  readonly sled: SledRow;
  readonly vmmCount: number;
  /** Nothing that its agent says is believed: it has joined, and none of its certificates is good. */
  readonly unheard: boolean;
}

/**
 * How many VMMs live on a sled. Named in full: in a query of one table drizzle writes bare column names, which a subquery
 * would take for its own.
 */
export const vmmCount = sql<number>`(SELECT count(*)::int FROM vmm placed WHERE placed.sled_id = sled.id AND placed.time_deleted IS NULL
    AND placed.state NOT IN ${goneStates})`;

/** See {@link CountedSled.unheard}; named in full as {@link vmmCount}. */
export const unheard = sql<boolean>`(sled.identified AND NOT EXISTS (SELECT 1 FROM sled_certificate good
    WHERE good.sled_id = sled.id AND good.time_revoked IS NULL AND good.time_expires > now()))`;

/** Reads a sled by its id, an expunged one included; `null` when there is none. */
export async function readSled(db: Queryable, sledId: string): Promise<SledRow | null> {
  const [row] = await db.select().from(sled).where(eq(sled.id, sledId));
  return row ?? null;
}

/** Reads a sled as {@link readSled} does, and counts its VMMs in the same statement. */
export async function readCountedSled(db: Queryable, sledId: string): Promise<CountedSled | null> {
  const [row] = await db.select({ sled, vmmCount, unheard }).from(sled).where(eq(sled.id, sledId));
  return row ?? null;
}

/** Finds a sled that isn't expunged by its name; `null` when there is none. */
export async function findSledByName(db: Queryable, name: string): Promise<SledRow | null> {
  const [row] = await db
    .select()
    .from(sled)
    .where(and(eq(sled.name, name), ne(sled.policy, 'expunged')));
  return row ?? null;
}
