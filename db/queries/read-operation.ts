import { eq } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { operation } from '../schema.ts';

export type OperationRow = typeof operation.$inferSelect;

/** Reads an operation by its id; `null` when none of that id is on record. */
export async function readOperation(db: Queryable, operationId: string): Promise<OperationRow | null> {
  const [row] = await db.select().from(operation).where(eq(operation.id, operationId));
  return row ?? null;
}
