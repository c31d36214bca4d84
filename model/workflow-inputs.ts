/**
 * What each workflow takes and gives, by its type: the one contract between those who start workflows (API, activities,
 * schedules) and the workflows themselves.
 */
import type { Attempt } from './attempt.ts';
import type { DrainCarried, DrainProgress } from './drain.ts';
import type { OperationError } from './failures.ts';
import type { MigrationObservation } from './migration-progress.ts';
import type { ReconcilerName, ReconcilerPass } from './reconcilers.ts';
import type { StartReason } from './states.ts';
import type { RECONCILER_WORKFLOWS } from './workflow-names.ts';

export interface InstanceStartInput {
  readonly instanceId: string;
  readonly reason: StartReason;
  /** How long registering may be tried again, in milliseconds. */
  readonly registerTimeoutMs?: number;
}

export interface InstanceStartResult {
  readonly outcome: 'started' | 'already started';
  readonly vmmId?: string;
  readonly sled?: string;
}

export interface InstanceMigrateInput {
  readonly instanceId: string;
  readonly destinationSledId: string;
  /** How long registering may be tried again, in milliseconds. */
  readonly registerTimeoutMs?: number;
  /** The sled that is being drained, where that is why. */
  readonly drainedSledId?: string;
}

export interface InstanceMigrateResult {
  readonly outcome: 'migrating' | 'already migrating';
  readonly vmmId?: string;
  readonly migrationId?: string;
  readonly sled?: string;
}

export interface InstanceUpdateInput {
  readonly instanceId: string;
}

export interface InstanceStopInput {
  readonly instanceId: string;
}

export interface VmmUnregisterInput {
  readonly vmmId: string;
}

/** A VMM to unwind. */
export interface UnwindInput extends Attempt {
  /** Leave a VMM alone whose sled has reported that its guest runs, or migrates in. */
  readonly spareRunning: boolean;
  /**
   * The sled's own answer to its command has ended the attempt. Without it, a migration whose destination was commanded, or is
   * about to be, is not unwound: it may be under way.
   */
  readonly refused?: boolean;
  /** What the operation's caller is answered. */
  readonly error: OperationError;
}

export interface MigrationWatchInput {
  readonly instanceId: string;
  readonly migrationId: string;
  /** The target VMM. */
  readonly vmmId: string;
  /** How long to watch at most, in milliseconds; by default half a day. */
  readonly limitMs?: number;
}

export interface SledDrainInput {
  readonly sledId: string;
  /** What to call it until it has been read. */
  readonly sledName?: string;
  /** How many instances are moved at a time. */
  readonly parallel: number;
  /** How often an instance may be tried before it is reported; default 3. */
  readonly maxRounds?: number;
  /** How long to pause before what failed is tried again, in milliseconds; longer each round. Default 5000. */
  readonly roundPauseMs?: number;
  /** How long an instance that is between two states is waited for, in milliseconds; default ten minutes. */
  readonly waitLimitMs?: number;
  /** How many instances one run deals with before it is continued as new; default 500. */
  readonly instancesPerRun?: number;
  /** What earlier runs of this drain have come to. */
  readonly carried?: DrainCarried;
}

type Reconcilers = {
  [Name in ReconcilerName as (typeof RECONCILER_WORKFLOWS)[Name]]: () => Promise<ReconcilerPass<Name>>;
};

/** Every workflow type, as its function is called. */
export interface WorkflowTypes extends Reconcilers {
  instanceStart(input: InstanceStartInput): Promise<InstanceStartResult>;
  instanceMigrate(input: InstanceMigrateInput): Promise<InstanceMigrateResult>;
  /** `last`: what its last round with anything to do did. */
  instanceUpdate(input: InstanceUpdateInput): Promise<{ rounds: number; last: string }>;
  instanceStop(input: InstanceStopInput): Promise<{ outcome: string }>;
  vmmUnregister(input: VmmUnregisterInput): Promise<{ outcome: string }>;
  vmmUnwind(input: UnwindInput): Promise<{ outcome: string }>;
  migrationWatch(input: MigrationWatchInput): Promise<MigrationObservation | { outcome: 'unwatched' }>;
  sledDrain(input: SledDrainInput): Promise<DrainProgress>;
}
