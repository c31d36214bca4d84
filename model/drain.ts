/** Draining a sled: what is to be done about an instance there, and how far it has come. Without I/O. */
import { inline } from './saga-story.ts';
import { assertNever, type ExternalState } from './states.ts';

/** What an instance has on the sled that is drained: its active VMM, a target that lives, or nothing. */
export type DrainPlace = 'active' | 'target' | 'elsewhere';

/** `left`: nothing of it is on the sled; `wait`: it is between two states; `move`: it can be migrated away. */
export type DrainStep = 'left' | 'wait' | 'move';

/** What is to be done about an instance that shows `shown` and that has this at the sled. */
export function drainStep(externalState: ExternalState, place: DrainPlace): DrainStep {
  if (place === 'elsewhere') return 'left';
  // It is on its way here: it can be sent on once it has arrived.
  if (place === 'target') return 'wait';
  switch (externalState) {
    case 'running':
      return 'move';
    case 'creating':
    case 'starting':
    case 'rebooting':
    case 'migrating':
    case 'stopping':
      return 'wait';
    case 'stopped':
    case 'failed':
      return 'left';
    default:
      return assertNever(externalState);
  }
}

export const DRAIN_STATES = ['running', 'drained', 'incomplete', 'stopped'] as const;
export type DrainState = (typeof DRAIN_STATES)[number];

/** An instance that a drain has to do with, and what there is to say of it. */
export interface DrainEntry {
  readonly instanceId: string;
  readonly name: string;
  readonly detail: string;
}

/** How far a drain has come. `incomplete` and `stopped` have left something on the sled, or may have. */
export interface DrainProgress {
  readonly sledId: string;
  readonly sledName: string;
  readonly state: DrainState;
  /** Instances that were on the sled: those that have left it and those that are there now. */
  readonly total: number;
  readonly moved: number;
  /** Instances that left the sled in another way: stopped, deleted or failed meanwhile. */
  readonly ended: number;
  /** `detail` is the destination. */
  readonly moving: readonly DrainEntry[];
  /** `detail` is what is waited for. */
  readonly waiting: readonly DrainEntry[];
  /** `detail` is the reason. */
  readonly couldNotMove: readonly DrainEntry[];
  readonly parallel: number;
  /** Why the drain ended before its work did; `null` otherwise. */
  readonly stopReason: string | null;
}

/** The same in Markdown, with what is moved where, what is waited for, and what could not move and why. */
export function drainDetails(progress: DrainProgress): string {
  const part = (title: string, entries: readonly DrainEntry[], between: string) =>
    entries.length === 0
      ? []
      : ['', `${title}:`, '', ...entries.map(({ name, detail }) => `- **${name}**${between}${inline(detail)}`)];
  return [
    `**${describeDrain(progress)}**`,
    ...part(`Moving, at most ${progress.parallel} at a time`, progress.moving, ' → '),
    ...part('Waited for', progress.waiting, ': '),
    ...part('Could not move', progress.couldNotMove, ': '),
  ].join('\n');
}

/** Says in one line how far a drain has come. */
export function describeDrain(progress: DrainProgress): string {
  const { sledName, total, moved, ended, moving, waiting, couldNotMove } = progress;
  const counts = [
    `${moved} of ${total} moved`,
    ended > 0 && `${ended} ended by themselves`,
    moving.length > 0 && `${moving.length} moving`,
    waiting.length > 0 && `${waiting.length} waited for`,
    couldNotMove.length > 0 && `${couldNotMove.length} could not move`,
  ].filter((part) => part !== false);
  switch (progress.state) {
    case 'running':
      return `draining ${sledName}: ${counts.join(', ')}`;
    case 'drained':
      return `${sledName} is drained: ${counts.join(', ')}`;
    case 'incomplete':
      return `${sledName} is not drained: ${counts.join(', ')}`;
    case 'stopped':
      return `draining ${sledName} was stopped${progress.stopReason === null ? '' : ` (${progress.stopReason})`}: ${counts.join(', ')}`;
    default:
      return assertNever(progress.state);
  }
}
