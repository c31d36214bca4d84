import { sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';

/** The project of an instance (one that isn't deleted, or any) or of an operation; `null` when there is no such thing. */
export async function readProjectOf(
  db: Queryable,
  kind: 'instance' | 'instance, deleted too' | 'operation',
  id: string,
): Promise<string | null> {
  const result = await db.execute(
    kind === 'operation'
      ? sql`SELECT project_id FROM operation JOIN instance ON instance.id = instance_id WHERE operation.id = ${id}`
      : kind === 'instance'
        ? sql`SELECT project_id FROM instance WHERE id = ${id} AND time_deleted IS NULL`
        : sql`SELECT project_id FROM instance WHERE id = ${id}`,
  );
  const row = result.rows[0];
  return row === undefined ? null : String(row.project_id);
}
