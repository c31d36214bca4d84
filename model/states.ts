/**
 * Every enumeration of the system, once. The database enums, the wire schemas and the model all read these arrays,
 * so that a new state is added in one place and the compiler finds every switch that must know of it.
 */

/** The states of an instance's own row. Source: Omicron `InstanceState` (nexus/db-model), with PR #5855. */
export const INSTANCE_STATES = ['creating', 'no_vmm', 'vmm', 'failed', 'destroyed'] as const;
export type InstanceState = (typeof INSTANCE_STATES)[number];

/** What the user wants of an instance. Source: Omicron `InstanceIntendedState`. */
export const INTENDED_STATES = ['running', 'stopped', 'guest_shutdown', 'destroyed'] as const;
export type IntendedState = (typeof INTENDED_STATES)[number];

/** The states of a VMM that a sled agent may report. */
export const WIRE_VMM_STATES = [
  'starting',
  'running',
  'stopping',
  'stopped',
  'rebooting',
  'migrating',
  'failed',
  'destroyed',
] as const;
export type WireVmmState = (typeof WIRE_VMM_STATES)[number];

/** The states of a VMM's row: the wire's, and the two that only the control plane writes. */
export const VMM_STATES = ['creating', ...WIRE_VMM_STATES, 'saga_unwound'] as const;
export type VmmState = (typeof VMM_STATES)[number];

/** The states of one side of a migration. */
export const MIGRATION_STATES = ['pending', 'in_progress', 'completed', 'failed'] as const;
export type MigrationState = (typeof MIGRATION_STATES)[number];

/** The kinds of claim on a sled: `tombstoned` is a VMM that moved away or whose sled has not confirmed that it is gone. */
export const RESERVATION_KINDS = ['active', 'target', 'tombstoned'] as const;

export const SLED_POLICIES = ['in_service', 'no_provision', 'expunged'] as const;

/** What a group asks of its members' places: together on one failure domain, or apart. */
export const AFFINITY_KINDS = ['affinity', 'anti_affinity'] as const;
export type AffinityKind = (typeof AFFINITY_KINDS)[number];

/** What a kind of group is called in messages. */
export function groupNoun(kind: AffinityKind): string {
  return kind === 'affinity' ? 'affinity group' : 'anti-affinity group';
}

/** What becomes of a placement that a group can't be honoured in: it goes ahead, or it fails. Source: Oxide `AffinityPolicy`. */
export const AFFINITY_POLICIES = ['allow', 'fail'] as const;
export type AffinityPolicy = (typeof AFFINITY_POLICIES)[number];

/** Where members are together or apart. Source: Oxide `FailureDomain`, which has this one. */
export const FAILURE_DOMAINS = ['sled'] as const;
export type FailureDomain = (typeof FAILURE_DOMAINS)[number];

export const AUTO_RESTART_POLICIES = ['never', 'best_effort'] as const;
export type AutoRestartPolicy = (typeof AUTO_RESTART_POLICIES)[number];

/** Who comes back first when a sled dies: in this order. Ours, beside the Oxide fields. */
export const RESTART_PRIORITIES = ['critical', 'normal', 'low'] as const;
export type RestartPriority = (typeof RESTART_PRIORITIES)[number];

/** Why a sled was declared dead: its lease lapsed, or an operator vouches that nothing runs there. */
export const DEATH_CAUSES = ['lease', 'operator'] as const;
export type DeathCause = (typeof DEATH_CAUSES)[number];

/** Who asked for the last start of an instance. */
export const START_REASONS = ['user', 'auto_restart'] as const;
export type StartReason = (typeof START_REASONS)[number];

/** What an operator or a client sees of an instance (section 4 of docs/design.md). */
export const EXTERNAL_STATES = [
  'creating',
  'stopped',
  'failed',
  'starting',
  'running',
  'rebooting',
  'migrating',
  'stopping',
] as const;
export type ExternalState = (typeof EXTERNAL_STATES)[number];

export const OPERATION_KINDS = ['start', 'migrate'] as const;
export type OperationKind = (typeof OPERATION_KINDS)[number];

/** What a change that is noted is of (docs/events.md); `token` is for the API itself. */
export const CHANGE_KINDS = ['instance', 'operation', 'migration', 'project', 'sled', 'audit', 'token'] as const;
export type ChangeKind = (typeof CHANGE_KINDS)[number];

/** The calls that a client may give an idempotency key. */
export const KEYED_CALLS = ['create', ...OPERATION_KINDS] as const;
export type KeyedCall = (typeof KEYED_CALLS)[number];

/** A state from which a sled agent's VMM never comes back. */
export function isTerminalVmmState(state: VmmState): boolean {
  return state === 'destroyed' || state === 'failed';
}

/**
 * A state whose VMM id can be removed from an instance. The update saga treats `saga_unwound` as `destroyed`
 * (rule 4 of Omicron PR #5855).
 */
export function isGoneVmmState(state: VmmState): boolean {
  return isTerminalVmmState(state) || state === 'saga_unwound';
}

/** A migration side that has had its last word. */
export function isTerminalMigrationState(state: MigrationState): boolean {
  return state === 'completed' || state === 'failed';
}

/** For the end of an exhaustive `switch`: the compiler refuses a state that was forgotten. Throws when one gets here. */
export function assertNever(value: never): never {
  throw new Error(`unexpected value: ${JSON.stringify(value)}`);
}
