import type { InstanceState, IntendedState, MigrationState, VmmState } from './states.ts';

/** What the decisions need to know of a VMM's row. */
export interface VmmFacts {
  readonly id: string;
  readonly state: VmmState;
  /** The VMM's start or migration has begun to unwind: no report about it counts any more. */
  readonly unwinding: boolean;
}

/** What the decisions need to know of a migration's row. */
export interface MigrationFacts {
  readonly id: string;
  readonly sourceVmmId: string;
  readonly targetVmmId: string;
  readonly sourceState: MigrationState;
  readonly targetState: MigrationState;
}

/** An instance and what it names, read in one consistent snapshot. */
export interface InstanceFacts {
  readonly state: InstanceState;
  readonly intendedState: IntendedState;
  readonly active: VmmFacts | null;
  readonly target: VmmFacts | null;
  readonly migration: MigrationFacts | null;
}
