import { lookAtMigration } from '../../activities/migration-watch.ts';
import { readLastMigration } from '../../db/queries/read-migration.ts';
import { describeMigration } from '../../model/migration-progress.ts';
import { Refusal } from '../../model/refusal.ts';
import { migrationView } from '../../wire/operator-api/migrations.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { findInstance, instanceRoute } from '../find-instance.ts';

/** Adds the endpoint that answers how far an instance's newest migration is, or how it ended. */
export function addMigrationRoutes(app: ApiApp, { db, sleds }: ApiContext): void {
  app.get(
    '/v1/instances/:instance/migration',
    {
      schema: { ...instanceRoute, response: { 200: migrationView, ...errors } },
    },
    async (request) => {
      const { instance } = await findInstance(db, request.params.instance, request.query.project);
      const migration = await readLastMigration(db, instance.id);
      if (migration === null) throw Refusal.notFound('migration of instance', instance.name);
      const observation = await lookAtMigration(sleds, migration, null);
      const { figures } = observation;
      return {
        id: migration.migrationId,
        outcome:
          observation.outcome === 'under way' ? null : observation.outcome === 'completed' ? 'completed' : 'failed',
        source_sled: observation.sourceSledName,
        target_sled: observation.sledName,
        source_state: observation.sourceState,
        target_state: observation.targetState,
        progress:
          figures === null
            ? null
            : {
                bytes_total: figures.bytesTotal,
                bytes_sent: figures.bytesSent,
                bytes_left: figures.bytesLeft,
                bytes_per_second: figures.bytesPerSecond,
                expected_downtime_ms: figures.expectedDowntimeMs,
                downtime_ms: figures.downtimeMs,
                elapsed_ms: figures.elapsedMs,
              },
        summary: describeMigration(observation),
      } as const;
    },
  );
}
