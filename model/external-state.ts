import type { InstanceFacts } from './snapshot.ts';
import { assertNever, type ExternalState, isGoneVmmState, isTerminalMigrationState } from './states.ts';

/**
 * Whether the migration that an instance names is live: on its way, or over with the records not yet brought in line.
 * Source: section 4 of docs/design.md.
 */
export function isLiveMigration(facts: InstanceFacts): boolean {
  const { active, target, migration } = facts;
  if (migration === null || target === null) return false;
  if (isGoneVmmState(target.state) || target.unwinding) return false;
  const aSideFailed = migration.sourceState === 'failed' || migration.targetState === 'failed';
  if (!aSideFailed || migration.targetState === 'completed') return true;
  const activeGone = active !== null && isGoneVmmState(active.state);
  return activeGone && !isTerminalMigrationState(migration.targetState);
}

/**
 * The state that people see of an instance: a pure function of its row, its active VMM and its migration, so that it is
 * right the moment a fact is written, whether or not an update has run. Source: section 4 of docs/design.md; the rules of
 * `saga_unwound` are those of Omicron PR #5855.
 */
export function deriveExternalState(facts: InstanceFacts): ExternalState {
  switch (facts.state) {
    case 'creating':
      return 'creating';
    case 'failed':
      return 'failed';
    case 'no_vmm':
    // A deleted instance is a 404 before anyone asks for its state.
    case 'destroyed':
      return 'stopped';
    case 'vmm':
      return facts.active === null ? 'stopped' : incarnatedState(facts, facts.active.state);
    default:
      return assertNever(facts.state);
  }
}

function incarnatedState(facts: InstanceFacts, active: NonNullable<InstanceFacts['active']>['state']): ExternalState {
  if (active === 'saga_unwound') return 'stopped';
  if (isLiveMigration(facts)) return 'migrating';
  switch (active) {
    case 'creating':
    case 'starting':
      return 'starting';
    case 'running':
    case 'rebooting':
    case 'migrating':
      return active;
    case 'stopping':
    case 'stopped':
    case 'destroyed':
    case 'failed':
      return 'stopping';
    default:
      return assertNever(active);
  }
}
