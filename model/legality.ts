import { Refusal } from './refusal.ts';
import type { ExternalState } from './states.ts';

/** The operations that a user can ask of an instance. */
export const OPERATIONS = ['start', 'stop', 'reboot', 'migrate', 'delete'] as const;
export type Operation = (typeof OPERATIONS)[number];

/**
 * What a state makes of an operation: `act` does it, `no-op` succeeds and changes nothing but the intended state,
 * `invalid` is 400 and `conflict` 409.
 */
export type Verdict = 'act' | 'no-op' | 'invalid' | 'conflict';

/**
 * Legality is data: one row per shown state, one column per operation (section 5 of docs/design.md, which follows
 * Omicron's `InstanceStateChangeError`s). `migrate` while Migrating is a no-op for the destination on its way only:
 * see {@link migrateVerdict}.
 */
export const LEGALITY: Readonly<Record<ExternalState, Readonly<Record<Operation, Verdict>>>> = {
  creating: { start: 'conflict', stop: 'conflict', reboot: 'conflict', migrate: 'conflict', delete: 'conflict' },
  stopped: { start: 'act', stop: 'no-op', reboot: 'invalid', migrate: 'invalid', delete: 'act' },
  failed: { start: 'act', stop: 'act', reboot: 'invalid', migrate: 'invalid', delete: 'act' },
  starting: { start: 'no-op', stop: 'act', reboot: 'conflict', migrate: 'invalid', delete: 'invalid' },
  running: { start: 'no-op', stop: 'act', reboot: 'act', migrate: 'act', delete: 'invalid' },
  rebooting: { start: 'no-op', stop: 'act', reboot: 'no-op', migrate: 'conflict', delete: 'invalid' },
  migrating: { start: 'no-op', stop: 'act', reboot: 'conflict', migrate: 'conflict', delete: 'invalid' },
  stopping: { start: 'conflict', stop: 'no-op', reboot: 'conflict', migrate: 'invalid', delete: 'invalid' },
};

/** What an operation on an instance that shows `shown` comes to. `migrate` has its own function, for its destination. */
export function verdict(externalState: ExternalState, operation: Operation): Verdict {
  return LEGALITY[externalState][operation];
}

/**
 * What a migration to `destinationSledId` comes to. `targetSledId` is the sled of the migration on its way, `null` when
 * there is none.
 */
export function migrateVerdict(
  externalState: ExternalState,
  destinationSledId: string,
  targetSledId: string | null,
): Verdict {
  if (externalState === 'migrating' && targetSledId === destinationSledId) return 'no-op';
  return verdict(externalState, 'migrate');
}

const HINTS: Readonly<Record<Operation, Partial<Record<ExternalState, string>>>> = {
  start: { stopping: 'wait until it is stopped, then start it again' },
  stop: {},
  reboot: {
    stopped: 'start it instead',
    failed: 'start it instead',
    starting: 'wait until it is running',
    migrating: 'wait until the migration is over',
    stopping: 'wait until it is stopped, then start it',
  },
  migrate: {
    stopped: 'start it first; a start may be placed on any sled',
    failed: 'start it first; a start may be placed on any sled',
    starting: 'wait until it is running',
    rebooting: 'wait until it is running again',
    migrating: 'wait until the migration that is on its way is over',
    stopping: 'it is on its way to stopped',
  },
  delete: {
    starting: 'stop it first',
    running: 'stop it first',
    rebooting: 'stop it first',
    migrating: 'stop it first',
    stopping: 'wait until it is stopped',
  },
};

/** The message of a refusal: what was asked, what the instance shows, and what to do next. */
export function refusalMessage(operation: Operation, name: string, externalState: ExternalState): string {
  const hint = HINTS[operation][externalState] ?? 'wait until it has been created';
  return `cannot ${operation} instance "${name}" while it is ${externalState}: ${hint}`;
}

/**
 * What an operation on an instance comes to where it is legal. Throws a {@link Refusal} where it is not. `migrate` is judged
 * by {@link migrateVerdict}.
 */
export function requireLegal(
  operation: Exclude<Operation, 'migrate'>,
  name: string,
  externalState: ExternalState,
): 'act' | 'no-op' {
  const judged = verdict(externalState, operation);
  if (judged === 'conflict') throw Refusal.conflict(refusalMessage(operation, name, externalState));
  if (judged === 'invalid') throw Refusal.invalid(refusalMessage(operation, name, externalState));
  return judged;
}
