import type { AccessTokenRow } from '../../db/schema.ts';
import type { AccessTokenView } from '../../wire/operator-api/access-tokens.ts';

/** A token as its administrators see it: never its secret. */
export function viewToken(row: AccessTokenRow): AccessTokenView {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    project_id: row.projectId,
    time_created: row.timeCreated.toISOString(),
    time_expires: row.timeExpires?.toISOString() ?? null,
  };
}
