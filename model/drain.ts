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

/** What one run of a drain hands to the next. */
export interface DrainCarried {
  readonly moved: number;
  readonly ended: number;
  /** By instance id. */
  readonly tries: Readonly<Record<string, DrainTry>>;
}

/** What became of the rounds of an instance that has not moved. */
export interface DrainTry {
  readonly name: string;
  readonly rounds: number;
  readonly reason: string;
  readonly avoidSledIds: readonly string[];
}

/** An instance on the sled that is drained. */
export interface DrainedInstance {
  readonly instanceId: string;
  readonly name: string;
}

/** The record of a drain: what has left the sled, what is on its way, and what was tried in vain. */
export class DrainLedger {
  readonly #maxRounds: number;
  #moved: number;
  #ended: number;
  readonly #tries: Map<string, DrainTry>;
  readonly #moving = new Map<string, DrainEntry>();
  readonly #waiting = new Map<string, DrainEntry>();
  #here = new Set<string>();

  /** `maxRounds`: how often an instance is tried before it is given up. `carried`: what earlier runs of the drain have come to. */
  constructor(maxRounds: number, carried: DrainCarried = { moved: 0, ended: 0, tries: {} }) {
    this.#maxRounds = maxRounds;
    this.#moved = carried.moved;
    this.#ended = carried.ended;
    this.#tries = new Map(Object.entries(carried.tries));
  }

  /** Notes what is on the sled now. Returns those that were tried in vain and have left it in another way since. */
  observe(instances: readonly DrainedInstance[]): DrainedInstance[] {
    this.#here = new Set(instances.map(({ instanceId }) => instanceId));
    return [...this.#tries]
      .filter(([instanceId]) => !this.#here.has(instanceId))
      .map(([instanceId, { name }]) => ({ instanceId, name }));
  }

  /** Whether nothing is on the sled. */
  get empty(): boolean {
    return this.#here.size === 0;
  }

  /** Those of the instances that may be tried again. */
  open<Instance extends DrainedInstance>(instances: readonly Instance[]): Instance[] {
    return instances.filter(({ instanceId }) => this.#rounds(instanceId) < this.#maxRounds);
  }

  /** How many rounds the least tried of these instances has had. */
  leastRounds(instances: readonly DrainedInstance[]): number {
    return Math.min(...instances.map(({ instanceId }) => this.#rounds(instanceId)));
  }

  /** Where migrations of an instance have failed. */
  sledIdsToAvoid(instanceId: string): readonly string[] {
    return this.#tries.get(instanceId)?.avoidSledIds ?? [];
  }

  /** An instance is waited for: `until` says for what. */
  waitsFor(instance: DrainedInstance, until: string): void {
    this.#waiting.set(instance.instanceId, { ...instance, detail: until });
  }

  /** An instance is on its way. */
  movesTo(instance: DrainedInstance, destination: string): void {
    this.#waiting.delete(instance.instanceId);
    this.#moving.set(instance.instanceId, { ...instance, detail: destination });
  }

  /** An instance has left the sled. */
  left(instanceId: string, how: 'moved' | 'ended'): void {
    if (how === 'moved') this.#moved += 1;
    else this.#ended += 1;
    this.#forget(instanceId);
    this.#here.delete(instanceId);
    this.#tries.delete(instanceId);
  }

  /** An instance that was tried in vain has come back: it is tried anew. */
  returned({ instanceId, name }: DrainedInstance): void {
    this.#tries.set(instanceId, { name, rounds: 0, reason: '', avoidSledIds: [] });
  }

  /** A round failed, for a reason; towards a sled, where it came so far. */
  failed(instance: DrainedInstance, reason: string, sledIdToAvoid: string | null = null): void {
    this.#fail(instance, reason, sledIdToAvoid, 1);
  }

  /** An instance can't be moved, and is not tried again. */
  givenUp(instance: DrainedInstance, reason: string): void {
    this.#fail(instance, reason, null, this.#maxRounds);
  }

  /** What the next run of the drain has to know. */
  carried(): DrainCarried {
    return { moved: this.#moved, ended: this.#ended, tries: Object.fromEntries(this.#tries) };
  }

  /** How far the drain has come. */
  progress(drain: Pick<DrainProgress, 'sledId' | 'sledName' | 'state' | 'parallel' | 'stopReason'>): DrainProgress {
    return {
      ...drain,
      total: this.#moved + this.#ended + this.#here.size,
      moved: this.#moved,
      ended: this.#ended,
      moving: [...this.#moving.values()],
      waiting: [...this.#waiting.values()],
      couldNotMove: [...this.#tries]
        .filter(([instanceId, { rounds }]) => rounds >= this.#maxRounds && this.#here.has(instanceId))
        .map(([instanceId, { name, reason }]) => ({ instanceId, name, detail: reason })),
    };
  }

  #rounds(instanceId: string): number {
    return this.#tries.get(instanceId)?.rounds ?? 0;
  }

  #fail({ instanceId, name }: DrainedInstance, reason: string, sledIdToAvoid: string | null, rounds: number): void {
    const avoidSledIds = [...this.sledIdsToAvoid(instanceId), ...(sledIdToAvoid === null ? [] : [sledIdToAvoid])];
    this.#tries.set(instanceId, {
      name,
      reason,
      rounds: this.#rounds(instanceId) + rounds,
      avoidSledIds: [...new Set(avoidSledIds)],
    });
    this.#forget(instanceId);
  }

  #forget(instanceId: string): void {
    this.#moving.delete(instanceId);
    this.#waiting.delete(instanceId);
  }
}
