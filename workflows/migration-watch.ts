/**
 * Shows how far a live migration is, in the Temporal Web UI: its current details, and the heartbeat details of its pending
 * activity. It begins when the destination has accepted to migrate the guest in, and ends with the migration.
 *
 * Nothing depends on it: it only reads. Whether it is lost, late or terminated changes nothing about the migration, whose
 * saga is over, and whose end the sleds report.
 */
import { proxyActivities, setCurrentDetails } from '@temporalio/workflow';
import type { WatchActivities } from '../activities/migration-watch.ts';
import { type MigrationFigures, type MigrationObservation, migrationDetails } from '../model/migration-progress.ts';
import type { MigrationWatchInput } from '../model/workflow-inputs.ts';

const DEFAULT_LIMIT_MS = 12 * 3_600_000;
/**
 * How long the first looks last, in milliseconds, and each one after them. A migration of ten minutes costs some hundred
 * events, one of half a day some thousand: Temporal warns at 10,000.
 */
const LOOKS_MS = [1_000, 1_000, 2_000, 3_000, 5_000, 8_000, 15_000, 30_000, 60_000, 60_000, 120_000];
const LONGEST_LOOK_MS = 300_000;

const { watchMigration } = proxyActivities<WatchActivities>({
  startToCloseTimeout: '6m',
  // The SDK passes a heartbeat on when four fifths of this are over: so often the Web UI's view of it is new.
  heartbeatTimeout: '5s',
  retry: { initialInterval: '100ms', backoffCoefficient: 2, maximumInterval: '10s' },
});

export async function migrationWatch(
  input: MigrationWatchInput,
): Promise<MigrationObservation | { outcome: 'unwatched' }> {
  const { migrationId, limitMs = DEFAULT_LIMIT_MS } = input;
  let observation: MigrationObservation | null = null;
  let figures: MigrationFigures | null = null;
  for (let look = 0, watchedMs = 0; watchedMs < limitMs; look++) {
    const forMs = Math.min(LOOKS_MS[look] ?? LONGEST_LOOK_MS, limitMs - watchedMs);
    observation = await watchMigration({ migrationId, forMs, figures });
    if (observation === null) break;
    figures = observation.figures;
    setCurrentDetails(migrationDetails(observation));
    if (observation.outcome !== 'under way') return observation;
    watchedMs += forMs;
  }
  return observation === null ? { outcome: 'unwatched' } : { ...observation, outcome: 'unwatched' };
}
