import type { ActivityMinute } from '../../db/queries/read-activity.ts';
import type { ActivityView } from '../../wire/operator-api/activity.ts';

/** What happened in the last minutes, as the API answers it. */
export function viewActivity(minutes: readonly ActivityMinute[]): ActivityView {
  return {
    time: new Date().toISOString(),
    minutes: minutes.map((minute) => ({
      time: minute.time.toISOString(),
      starts: { succeeded: minute.startsSucceeded, failed: minute.startsFailed },
      migrations: { succeeded: minute.migrationsSucceeded, failed: minute.migrationsFailed },
      unwinds: minute.unwinds,
      failures: minute.failures,
      update_lag:
        minute.meanLagSeconds === null || minute.maxLagSeconds === null
          ? null
          : { count: minute.updates, mean_seconds: minute.meanLagSeconds, max_seconds: minute.maxLagSeconds },
    })),
  };
}
