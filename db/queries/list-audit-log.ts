import { and, asc, desc, isNotNull, lt, type SQL, sql } from 'drizzle-orm';
import type { Queryable } from '../connect.ts';
import { auditLog } from '../schema.ts';

type AuditRow = typeof auditLog.$inferSelect;
export type CompletedRecord = AuditRow & { readonly timeCompleted: Date };

/** A place in the log: behind this record. The time is text, as exact as the database has it. */
export interface AuditPlace {
  readonly time: string;
  readonly id: string;
}

/**
 * Lists at most `limit` records that are completed, by the time of that and the id, behind `after`. `from` is included and
 * `until` is not. In ascending order nothing is ever inserted before what was read, but for records that a transaction
 * completes that is still open.
 */
export async function listAuditLog(
  db: Queryable,
  query: { from: Date | null; until: Date | null; after: AuditPlace | null; newestFirst: boolean; limit: number },
): Promise<{ record: CompletedRecord; place: AuditPlace }[]> {
  const { after, newestFirst } = query;
  const beyond: SQL | undefined =
    after === null
      ? undefined
      : newestFirst
        ? sql`(${auditLog.timeCompleted}, ${auditLog.id}) < (${after.time}::timestamptz, ${after.id}::uuid)`
        : sql`(${auditLog.timeCompleted}, ${auditLog.id}) > (${after.time}::timestamptz, ${after.id}::uuid)`;
  const order = newestFirst ? desc : asc;
  const rows = await db
    .select({ record: auditLog, time: sql<string>`${auditLog.timeCompleted}::text` })
    .from(auditLog)
    .where(
      and(
        isNotNull(auditLog.timeCompleted),
        query.from === null ? undefined : sql`${auditLog.timeCompleted} >= ${query.from.toISOString()}::timestamptz`,
        query.until === null ? undefined : lt(auditLog.timeCompleted, query.until),
        beyond,
      ),
    )
    .orderBy(order(auditLog.timeCompleted), order(auditLog.id))
    .limit(query.limit);
  return rows.flatMap(({ record, time }) =>
    record.timeCompleted === null
      ? []
      : [{ record: { ...record, timeCompleted: record.timeCompleted }, place: { time, id: record.id } }],
  );
}
