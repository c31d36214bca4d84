/**
 * The plan of a soak: every operation and every fault with its time and its target, made up front from the seed by a
 * pure function. The same options give the same plan; what the machine makes of it differs from run to run.
 */
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';

export interface PlanOptions {
  readonly seed: number;
  /** How long operations and faults go on, in milliseconds. */
  readonly durationMs: number;
  readonly instances: number;
  readonly workers: number;
  readonly apis: number;
  readonly sleds: number;
  /** How many operations are asked for a second, on average. */
  readonly operationsPerSecond: number;
}

/** What is asked of the API. A slot is a name that instances get, one after the other. */
const SOAK_OPERATIONS = [
  'create',
  'start',
  'stop',
  'reboot',
  'migrate',
  'delete',
  'resize',
  'read',
  'set-policy',
] as const;
export type SoakOperation = (typeof SOAK_OPERATIONS)[number];

export interface PlannedOperation {
  readonly atMs: number;
  readonly kind: SoakOperation;
  readonly slot: number;
  /** Which API process is asked. */
  readonly api: number;
  /** How long the caller waits for the saga's outcome, in seconds. */
  readonly waitSeconds: number;
  /** Migrate: the destination. Set-policy: the sled. */
  readonly sled: number;
  /** Create: whether it is started at once. Set-policy: whether the sled takes instances. */
  readonly on: boolean;
  readonly ncpus: number;
  readonly memoryBytes: number;
}

export const KILL_TARGETS = ['worker', 'api', 'sled-agent', 'postgres', 'temporal'] as const;
export type KillTarget = (typeof KILL_TARGETS)[number];

/** What happens to the messages of one link while the weather lasts: probabilities from 0 to 1. */
export interface Weather {
  readonly delay: number;
  /** The longest delay of a message or of its answer, in milliseconds. */
  readonly maxDelayMs: number;
  readonly duplicate: number;
  readonly loseRequest: number;
  readonly loseAnswer: number;
}

/** Commands go from the control plane to a sled agent, reports the other way. */
const LINK_DIRECTIONS = ['commands', 'reports'] as const;
export type LinkDirection = (typeof LINK_DIRECTIONS)[number];

export type PlannedFault = { readonly atMs: number } & (
  | { readonly kind: 'kill'; readonly target: KillTarget; readonly index: number; readonly downMs: number }
  /** A sled burns down: its agent ends for good, the operator expunges it and adds another one. */
  | { readonly kind: 'replace-sled'; readonly sled: number }
  | {
      readonly kind: 'weather';
      readonly sled: number;
      readonly direction: LinkDirection;
      readonly durationMs: number;
      readonly weather: Weather;
    }
  /** A guest powers itself off, its VMM's process dies, or its sled agent forgets it. */
  | { readonly kind: 'guest'; readonly what: 'halt' | 'crash' | 'lose'; readonly slot: number }
  /** The next such call is refused by a sled agent. */
  | {
      readonly kind: 'refusal';
      readonly sled: number;
      readonly call: 'register' | 'state:running' | 'state:migration_target';
      readonly status: number;
    }
  /** The next migration fails on this side. */
  | {
      readonly kind: 'migration';
      readonly sled: number;
      readonly side: 'source' | 'target';
      readonly point: 'before' | 'middle';
    }
);

export interface SoakPlan {
  readonly options: PlanOptions;
  readonly operations: readonly PlannedOperation[];
  readonly faults: readonly PlannedFault[];
}

const MIB = 1024 ** 2;
/** How often each operation is drawn once the instances have been created. */
const OPERATION_WEIGHTS: Readonly<Record<SoakOperation, number>> = {
  create: 8,
  start: 26,
  stop: 12,
  reboot: 6,
  migrate: 32,
  delete: 7,
  resize: 6,
  read: 10,
  'set-policy': 1,
};
const KILL_WEIGHTS: Readonly<Record<KillTarget, number>> = {
  worker: 30,
  api: 22,
  'sled-agent': 22,
  postgres: 5,
  temporal: 5,
};
const FAULT_WEIGHTS: Readonly<Record<PlannedFault['kind'], number>> = {
  kill: 24,
  weather: 40,
  guest: 22,
  refusal: 18,
  migration: 10,
  'replace-sled': 1,
};
/** The share of the time in which every instance is created: faults come from the start, a crowd to hit only later. */
const RAMP = 0.2;
/** How many faults a second, on average. */
const FAULTS_PER_SECOND = 1.5;
/** After a kill a target is left alone for this long, in milliseconds: to come up, and to do something worth killing. */
const KILL_PAUSE_MS = 12_000;
const LONG_ENOUGH_TO_TIME_OUT_MS = 6_000;

/** Draws from a seeded stream. */
export class Dice {
  readonly #generator;

  constructor(seed: number) {
    this.#generator = xoroshiro128plus(seed | 0);
  }

  /** An integer from 0 up to, but not including, `count`. */
  below(count: number): number {
    return uniformInt(this.#generator, 0, count - 1);
  }

  /** A number from `from` to `to`. */
  between(from: number, to: number): number {
    return from + uniformFloat64(this.#generator) * (to - from);
  }

  chance(probability: number): boolean {
    return uniformFloat64(this.#generator) < probability;
  }

  pick<Item>(items: readonly Item[]): Item {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new Error('nothing to pick from');
    return item;
  }

  weighted<Item extends string>(weights: Readonly<Record<Item, number>>): Item {
    const entries = Object.entries(weights) as [Item, number][];
    let left = this.between(
      0,
      entries.reduce((sum, [, weight]) => sum + weight, 0),
    );
    for (const [item, weight] of entries) {
      left -= weight;
      if (left < 0) return item;
    }
    return (entries.at(-1) as [Item, number])[0];
  }
}

/** A stream of its own for each purpose, so that a change in one leaves the others as they are. */
export function streamSeed(seed: number, purpose: string): number {
  let hash = seed | 0;
  for (const character of purpose) hash = Math.imul(hash ^ (character.codePointAt(0) ?? 0), 0x01000193);
  return hash;
}

/** Makes the plan of a soak. Pure: the same options give the same plan. Throws when a count is not positive. */
export function makePlan(options: PlanOptions): SoakPlan {
  for (const [name, value] of Object.entries(options)) {
    if (name !== 'seed' && !(value > 0)) throw new Error(`${name}: must be more than 0, not ${value}`);
  }
  return { options, operations: planOperations(options), faults: planFaults(options) };
}

function planOperations(options: PlanOptions): PlannedOperation[] {
  const dice = new Dice(streamSeed(options.seed, 'operations'));
  const operations: PlannedOperation[] = [];
  const add = (atMs: number, kind: SoakOperation, slot: number) =>
    operations.push({
      atMs: Math.round(atMs),
      kind,
      slot,
      api: dice.below(options.apis),
      waitSeconds: dice.pick([0, 1, 5, 20]),
      sled: dice.below(options.sleds),
      on: dice.chance(0.7),
      ncpus: dice.pick([1, 2, 4]),
      memoryBytes: dice.pick([512, 1024, 2048]) * MIB,
    });
  const rampMs = options.durationMs * RAMP;
  for (let slot = 0; slot < options.instances; slot++) add((rampMs * slot) / options.instances, 'create', slot);
  const count = Math.round((options.durationMs / 1000) * options.operationsPerSecond);
  // A few instances get half of all operations: races need two at a time on one.
  const favourites = Math.max(1, Math.ceil(options.instances / 10));
  for (let index = 0; index < count; index++) {
    const slot = dice.chance(0.5) ? dice.below(favourites) : dice.below(options.instances);
    const created = (rampMs * slot) / options.instances;
    add(dice.between(created, options.durationMs), dice.weighted(OPERATION_WEIGHTS), slot);
  }
  return operations.sort((one, other) => one.atMs - other.atMs);
}

function planFaults(options: PlanOptions): PlannedFault[] {
  const dice = new Dice(streamSeed(options.seed, 'faults'));
  const faults: PlannedFault[] = [];
  const leftAlone = new Map<string, number>();
  let replacedUntilMs = 0;
  const count = Math.round((options.durationMs / 1000) * FAULTS_PER_SECOND);
  const times = Array.from({ length: count }, () => Math.round(dice.between(0, options.durationMs)));
  for (const atMs of times.sort((one, other) => one - other)) {
    const sled = dice.below(options.sleds);
    switch (dice.weighted(FAULT_WEIGHTS)) {
      case 'kill': {
        const target = dice.weighted(KILL_WEIGHTS);
        const counts = { worker: options.workers, api: options.apis, 'sled-agent': options.sleds };
        const index = target === 'postgres' || target === 'temporal' ? 0 : dice.below(counts[target]);
        const downMs = Math.round(dice.between(0, 2_500));
        const key = `${target}/${index}`;
        if ((leftAlone.get(key) ?? 0) > atMs) break;
        leftAlone.set(key, atMs + downMs + KILL_PAUSE_MS);
        faults.push({ atMs, kind: 'kill', target, index, downMs });
        break;
      }
      case 'replace-sled':
        // One at a time: the new one must be there before the next one burns.
        if (replacedUntilMs > atMs) break;
        replacedUntilMs = atMs + 20_000;
        leftAlone.set(`sled-agent/${sled}`, atMs + 20_000);
        faults.push({ atMs, kind: 'replace-sled', sled });
        break;
      case 'weather':
        faults.push({
          atMs,
          kind: 'weather',
          sled,
          direction: dice.pick(LINK_DIRECTIONS),
          durationMs: Math.round(dice.between(1_000, 15_000)),
          weather: {
            delay: dice.between(0.2, 0.9),
            maxDelayMs: dice.chance(0.3) ? LONG_ENOUGH_TO_TIME_OUT_MS : Math.round(dice.between(50, 1_500)),
            duplicate: dice.between(0, 0.5),
            loseRequest: dice.between(0, 0.3),
            loseAnswer: dice.between(0, 0.3),
          },
        });
        break;
      case 'guest':
        faults.push({
          atMs,
          kind: 'guest',
          what: dice.pick(['halt', 'crash', 'lose'] as const),
          slot: dice.below(options.instances),
        });
        break;
      case 'refusal': {
        const call = dice.pick(['register', 'state:running', 'state:migration_target'] as const);
        faults.push({ atMs, kind: 'refusal', sled, call, status: dice.pick([409, 503]) });
        break;
      }
      case 'migration':
        faults.push({
          atMs,
          kind: 'migration',
          sled,
          side: dice.pick(['source', 'target'] as const),
          point: dice.pick(['before', 'middle'] as const),
        });
        break;
    }
  }
  return faults;
}
