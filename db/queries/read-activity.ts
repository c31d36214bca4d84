import { sql } from 'drizzle-orm';
import { z } from 'zod';
import type { Queryable } from '../connect.ts';

const count = z.coerce.number();
const minute = z.object({
  time: z.coerce.date(),
  startsSucceeded: count,
  startsFailed: count,
  migrationsSucceeded: count,
  migrationsFailed: count,
  /** VMMs that a saga gave up. */
  unwinds: count,
  /** VMMs that became `failed`. */
  failures: count,
  /** VMMs that ended, and how long it took until their instances showed it, in seconds. */
  updates: count,
  meanLagSeconds: z.coerce.number().nullable(),
  maxLagSeconds: z.coerce.number().nullable(),
});
export type ActivityMinute = z.infer<typeof minute>;

/**
 * What happened in each of the last minutes, the oldest first; the last one is not over yet. By what is on record: what the
 * reaper has deleted is not counted, which it does days later.
 */
export async function readActivity(db: Queryable, minutes: number): Promise<ActivityMinute[]> {
  const { rows } = await db.execute(sql`
    WITH span AS (
      SELECT date_trunc('minute', now()) - ${minutes - 1}::int * interval '1 minute' AS since
    ), ended AS (
      SELECT date_trunc('minute', time_ended) AS time,
        count(*) FILTER (WHERE kind = 'start' AND succeeded) AS starts_succeeded,
        count(*) FILTER (WHERE kind = 'start' AND NOT succeeded) AS starts_failed,
        count(*) FILTER (WHERE kind = 'migrate' AND succeeded) AS migrations_succeeded,
        count(*) FILTER (WHERE kind = 'migrate' AND NOT succeeded) AS migrations_failed
      FROM operation, span WHERE time_ended >= since GROUP BY 1
    ), gone AS (
      SELECT date_trunc('minute', time_deleted) AS time,
        count(*) FILTER (WHERE state = 'saga_unwound') AS unwinds,
        count(*) FILTER (WHERE state = 'failed') AS failures,
        count(*) FILTER (WHERE state IN ('destroyed', 'failed')) AS updates,
        avg(extract(epoch FROM time_deleted - time_state_updated)) FILTER (WHERE state IN ('destroyed', 'failed')) AS mean_lag,
        max(extract(epoch FROM time_deleted - time_state_updated)) FILTER (WHERE state IN ('destroyed', 'failed')) AS max_lag
      FROM vmm, span WHERE time_deleted >= since GROUP BY 1
    )
    SELECT minute AS time, coalesce(starts_succeeded, 0) AS "startsSucceeded", coalesce(starts_failed, 0) AS "startsFailed",
      coalesce(migrations_succeeded, 0) AS "migrationsSucceeded", coalesce(migrations_failed, 0) AS "migrationsFailed",
      coalesce(unwinds, 0) AS unwinds, coalesce(failures, 0) AS failures, coalesce(updates, 0) AS updates,
      mean_lag AS "meanLagSeconds", max_lag AS "maxLagSeconds"
    FROM span, generate_series(since, date_trunc('minute', now()), interval '1 minute') AS minute
    LEFT JOIN ended ON ended.time = minute LEFT JOIN gone ON gone.time = minute ORDER BY minute`);
  return z.array(minute).parse(rows);
}
