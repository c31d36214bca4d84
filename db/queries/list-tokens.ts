import { and, asc, eq, gt, isNull } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { type AccessTokenRow, accessToken } from '../schema.ts';

/** Lists at most `limit` tokens that are not revoked, by name after `after`; only a project's where `projectId` is given. */
export async function listTokens(
  db: Queryable,
  query: { projectId: string | null; after: string | null; limit: number },
): Promise<AccessTokenRow[]> {
  return db
    .select()
    .from(accessToken)
    .where(
      and(
        isNull(accessToken.timeRevoked),
        query.projectId === null ? undefined : eq(accessToken.projectId, query.projectId),
        query.after === null ? undefined : gt(accessToken.name, query.after),
      ),
    )
    .orderBy(asc(accessToken.name))
    .limit(query.limit);
}
