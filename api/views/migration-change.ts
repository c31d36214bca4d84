import type { PlacedMigration } from '../../db/queries/read-changed-objects.ts';
import type { MigrationChange } from '../../wire/operator-api/events.ts';

/** A migration as its events show it: what the two sleds said last. How far it is, they are asked. */
export function viewMigrationChange({ migration, sourceSledId, targetSledId }: PlacedMigration): MigrationChange {
  const { id, instanceId, sourceState, targetState } = migration;
  const hasFailed = sourceState === 'failed' || targetState === 'failed';
  return {
    id,
    instance_id: instanceId,
    source_sled_id: sourceSledId,
    target_sled_id: targetSledId,
    source_state: sourceState,
    target_state: targetState,
    outcome: targetState === 'completed' ? 'completed' : hasFailed ? 'failed' : null,
  };
}
