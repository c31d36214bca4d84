import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const directoryRow = z.object({
  id: z.string(),
  name: z.string(),
  address: z.string(),
  identified: z.boolean(),
  keptAgentId: z.string().nullable(),
});

export type DirectoryEntry = z.infer<typeof directoryRow>;

/** Which sled is at which address, and whether its agent is known by certificates. */
export async function readSledDirectory(db: Queryable): Promise<DirectoryEntry[]> {
  const result = await db.execute(
    sql`/* sled-identity */ SELECT id, name, address, identified, kept_agent_id AS "keptAgentId" FROM sled WHERE policy <> 'expunged' ORDER BY name`,
  );
  return result.rows.map((row) => directoryRow.parse(row));
}
