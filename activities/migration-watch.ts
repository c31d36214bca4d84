/** Looks at a live migration: what the database says of its two sides, and what their sleds say of the guest's way. */
import { setTimeout as pause } from 'node:timers/promises';
import { cancellationSignal, heartbeat } from '@temporalio/activity';
import { readMigration, type StoredMigration } from '../db/queries/read-migration.ts';
import {
  bytesPerSecond,
  describeMigration,
  type MigrationFigures,
  type MigrationObservation,
  migrationOutcome,
} from '../model/migration-progress.ts';
import type { MigrationProgress } from '../wire/sled-protocol.ts';
import type { ActivityContext } from './context.ts';
import { instrumented } from './instrumented.ts';
import { sledOf } from './sled-calls.ts';
import type { SledClient } from './sled-client.ts';

/** How long one sled may take to say how far it is, in milliseconds. */
const SLED_CALL_MS = 1_500;
const LOOK_EVERY_MS = 1_000;

export type WatchActivities = ReturnType<typeof createWatchActivities>;

export interface WatchMigrationRequest {
  readonly migrationId: string;
  /** How long to watch, in milliseconds; it ends before, when the migration does. */
  readonly forMs: number;
  /** What an earlier look saw: a sled that has let go of its VMM says nothing any more. */
  readonly figures: MigrationFigures | null;
}

/**
 * One look at a migration. A sled that doesn't answer, or gives no figures, leaves `before` as it is; the destination's
 * final figures count for more than the source's, since it knows when the guest went on.
 */
export async function lookAtMigration(
  sleds: SledClient,
  migration: StoredMigration,
  before: MigrationFigures | null,
): Promise<MigrationObservation> {
  const { migrationId, instanceName, linked, source, target } = migration;
  const [sent, arrived] = await Promise.all([source, target].map((side) => ask(sleds, migrationId, side)));
  const newest = arrived ?? sent ?? null;
  return {
    outcome: migrationOutcome({ sourceState: source.state, targetState: target.state, linked }),
    instanceName,
    sourceSledName: source.sledName ?? 'no sled',
    sledName: target.sledName ?? 'no sled',
    sourceState: source.state,
    targetState: target.state,
    figures: newest === null ? before : figuresOf(newest, before),
  };
}

async function ask(
  sleds: SledClient,
  migrationId: string,
  source: StoredMigration['source'],
): Promise<MigrationProgress | null> {
  const sled = sledOf(source);
  if (sled === null) return null;
  const answer = await sleds
    .readProgress(sled, source.vmmId, SLED_CALL_MS)
    // A sled that gives no figures changes nothing: its reports say how the migration ends.
    .catch(() => null);
  // A VM that has moved on by another migration speaks of that one.
  return answer?.migration_id === migrationId ? answer : null;
}

function figuresOf(progress: MigrationProgress, before: MigrationFigures | null): MigrationFigures {
  const sent = { bytesSent: progress.bytes_sent, elapsedMs: progress.elapsed_ms };
  const over = progress.downtime_ms !== null;
  return {
    ...sent,
    bytesTotal: progress.bytes_total,
    bytesLeft: progress.bytes_left,
    bytesPerSecond: bytesPerSecond(sent, over ? null : before),
    expectedDowntimeMs: progress.expected_downtime_ms ?? null,
    downtimeMs: progress.downtime_ms,
  };
}

/** Makes the activity of the migration watch. */
export function createWatchActivities({ db, sleds, metrics }: Pick<ActivityContext, 'db' | 'sleds' | 'metrics'>) {
  return instrumented(metrics, {
    /**
     * Looks once a second, and shows what it sees as heartbeat details, until the migration is over or the time is;
     * `null` when there is no such migration.
     */
    async watchMigration(request: WatchMigrationRequest): Promise<MigrationObservation | null> {
      let observation: MigrationObservation | null = null;
      const beat = () =>
        heartbeat(observation === null ? undefined : { says: describeMigration(observation), ...observation.figures });
      const beating = setInterval(beat, LOOK_EVERY_MS);
      try {
        const end = performance.now() + request.forMs;
        let { figures } = request;
        for (;;) {
          const migration = await readMigration(db, request.migrationId);
          if (migration === null) return null;
          observation = await lookAtMigration(sleds, migration, figures);
          ({ figures } = observation);
          const leftMs = end - performance.now();
          if (observation.outcome !== 'under way' || leftMs <= 0) return observation;
          beat();
          await pause(Math.min(LOOK_EVERY_MS, leftMs), undefined, { signal: cancellationSignal() });
        }
      } finally {
        clearInterval(beating);
      }
    },
  });
}
