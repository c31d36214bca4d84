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
  /** Faults that never come: what a short run has no time for. */
  readonly without?: readonly FaultKind[];
}

/**
 * `fenced`: its agent has a lease, and keeps its records on disk; `kept`: it keeps its records; `bare`: it knows nothing
 * after a restart.
 */
const SLED_KINDS = ['fenced', 'kept', 'bare', 'fenced'] as const;
export type SledKind = (typeof SLED_KINDS)[number];

/** What is the sled like that has the n-th place, whichever server has it at the moment. */
export function sledKind(index: number): SledKind {
  return SLED_KINDS[index % SLED_KINDS.length] as SledKind;
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
  /** Create: after how many seconds it may be started again by itself once more; `null`: it never is. */
  readonly restartsAfterSeconds: number | null;
  readonly ncpus: number;
  readonly memoryBytes: number;
}

export const KILL_TARGETS = ['worker', 'api', 'sled-agent', 'postgres', 'temporal'] as const;
export type KillTarget = (typeof KILL_TARGETS)[number];
const FREEZE_TARGETS = ['worker', 'api'] as const;
export type FreezeTarget = (typeof FREEZE_TARGETS)[number];

/** What happens to the messages of one link while the weather lasts: probabilities from 0 to 1. */
export interface Weather {
  readonly delay: number;
  /** The longest delay of a message or of its answer, in milliseconds. */
  readonly maxDelayMs: number;
  readonly duplicate: number;
  readonly loseRequest: number;
  readonly loseAnswer: number;
}

/** What somebody else answers in the receiver's place: a proxy, a gateway, a page that asks to log in. */
export interface Impostor {
  readonly status: (typeof IMPOSTOR_STATUSES)[number];
  readonly body: 'html' | 'json' | 'nothing';
  /** The share of messages that it answers. */
  readonly share: number;
  /** The share of those that have reached their receiver all the same. */
  readonly carried: number;
}
const IMPOSTOR_STATUSES = [200, 403, 404, 409, 502] as const;

/** What an operator says of a sled. */
const WORDS = ['declare-dead', 'expunge', 'force-stop'] as const;
export type Word = (typeof WORDS)[number];
/** How a sled is when the operator speaks: powered off, as said; or not, so that only its lease makes the word true. */
const SLED_STATES = ['off', 'frozen', 'cut', 'live'] as const;
export type SledState = (typeof SLED_STATES)[number];

/** Commands go from the control plane to a sled agent, reports the other way. */
const LINK_DIRECTIONS = ['commands', 'reports'] as const;
export type LinkDirection = (typeof LINK_DIRECTIONS)[number];

export type PlannedFault = { readonly atMs: number } & (
  | { readonly kind: 'kill'; readonly target: KillTarget; readonly index: number; readonly downMs: number }
  /** A worker or an API is stopped (SIGSTOP), and goes on later. */
  | { readonly kind: 'freeze'; readonly target: FreezeTarget; readonly index: number; readonly durationMs: number }
  /** The processes of PostgreSQL are stopped (SIGSTOP), and go on later: those of connections, the one that takes new ones, or all. */
  | {
      readonly kind: 'freeze-postgres';
      readonly what: 'connections' | 'postmaster' | 'server';
      readonly durationMs: number;
    }
  /** A sled's disk is full. */
  | { readonly kind: 'full-disk'; readonly sled: number; readonly durationMs: number }
  /** Search attributes vanish from the Temporal namespace. */
  | { readonly kind: 'attributes'; readonly which: 'one' | 'all'; readonly draw: number }
  | {
      readonly kind: 'impostor';
      readonly sled: number;
      readonly direction: LinkDirection;
      readonly durationMs: number;
      readonly impostor: Impostor;
    }
  /** The workers of a new build take the place of the old ones; it is promoted later. */
  | { readonly kind: 'deploy'; readonly promoteAfterMs: number }
  /** A sled says nothing any more: its agent is stopped (SIGSTOP), its network is cut, or it is without power. */
  | {
      readonly kind: 'silent-sled';
      readonly sled: number;
      readonly how: Exclude<SledState, 'live'>;
      readonly durationMs: number;
    }
  /** A sled's wall clock is set. */
  | { readonly kind: 'clock'; readonly sled: number; readonly shiftMs: number; readonly durationMs: number }
  /**
   * An operator states that a sled is powered off. Where it is expunged another server takes its place; `returns`: the old
   * one is switched on again by mistake.
   */
  | {
      readonly kind: 'word';
      readonly word: Word;
      readonly state: SledState;
      readonly sled: number;
      readonly afterMs: number;
      readonly returns: boolean;
    }
  /** An operator expunges, or declares dead, a sled that answers, and does not state that it is powered off. */
  | { readonly kind: 'slip'; readonly word: 'declare-dead' | 'expunge'; readonly sled: number }
  | { readonly kind: 'drain'; readonly sled: number; readonly parallel: number; readonly stopAfterMs: number | null }
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

export type FaultKind = PlannedFault['kind'];

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
const FAULT_WEIGHTS: Readonly<Record<FaultKind, number>> = {
  kill: 24,
  weather: 40,
  guest: 22,
  refusal: 18,
  migration: 10,
  impostor: 8,
  'full-disk': 3,
  'silent-sled': 3,
  clock: 3,
  word: 2.5,
  drain: 2,
  attributes: 1.5,
  freeze: 2,
  'freeze-postgres': 1.5,
  slip: 1,
  deploy: 0.7,
};
interface CertainFault {
  readonly kind: FaultKind;
  readonly target?: KillTarget;
}

/** What comes at least once, however short the run: what takes longest comes first. Of kills each target. */
const AT_LEAST_ONCE: readonly CertainFault[] = [
  { kind: 'silent-sled' },
  { kind: 'freeze' },
  { kind: 'kill', target: 'postgres' },
  { kind: 'deploy' },
  { kind: 'word' },
  { kind: 'attributes' },
  { kind: 'drain' },
  { kind: 'kill', target: 'api' },
  { kind: 'full-disk' },
  { kind: 'impostor' },
  { kind: 'kill', target: 'temporal' },
  { kind: 'clock' },
  { kind: 'kill', target: 'worker' },
  { kind: 'freeze-postgres' },
  { kind: 'slip' },
  { kind: 'kill', target: 'sled-agent' },
];
/** The share of the time in which each of those comes. */
const ONCE_FROM = 0.06;
const ONCE_UNTIL = 0.75;
/** The share of the time in which every instance is created: faults come from the start, a crowd to hit only later. */
const RAMP = 0.2;
/** How many faults a second, on average. */
const FAULTS_PER_SECOND = 1.5;
/** After a kill a target is left alone for this long, in milliseconds: to come up, and to do something worth killing. */
const KILL_PAUSE_MS = 12_000;
const LONG_ENOUGH_TO_TIME_OUT_MS = 6_000;
/** The lease of the sleds that have one, in milliseconds: the shortest that an API which beats once a second takes. */
export const LEASE_MS = 15_000;
/** Longer than a lease and its margin, and a pass of the loop that judges it, in milliseconds. */
const LONG_ENOUGH_TO_BE_DEAD_MS = LEASE_MS * 2;
/** How long PostgreSQL's connections are frozen so that a call that hangs with them is never answered, in milliseconds. */
const LONG_ENOUGH_TO_HANG_MS = 85_000;
const HOUR_MS = 3_600_000;

/** Reads the name of a kind of fault. Throws when there is none of that name. */
export function faultKind(name: string): FaultKind {
  const known = Object.keys(FAULT_WEIGHTS) as FaultKind[];
  const found = known.find((kind) => kind === name);
  if (found === undefined) throw new Error(`there is no fault "${name}"; there are: ${known.join(', ')}`);
  return found;
}

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
  const { seed: _, without: __, ...counts } = options;
  for (const [name, value] of Object.entries(counts)) {
    if (!(value > 0)) throw new Error(`${name}: must be more than 0, not ${value}`);
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
      restartsAfterSeconds: dice.chance(0.35) ? dice.pick([0, 5, 20]) : null,
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

/** Who is busy with what, and until when. */
class Occupancy {
  readonly #taken = new Map<string, { readonly fromMs: number; readonly untilMs: number }[]>();

  /** Takes all of `keys` from `fromMs` until `untilMs`, or, where one of them is taken for a part of it, none: then `false`. */
  take(keys: readonly string[], fromMs: number, untilMs: number): boolean {
    const isTaken = (key: string) =>
      (this.#taken.get(key) ?? []).some((other) => other.fromMs < untilMs && fromMs < other.untilMs);
    if (keys.some(isTaken)) return false;
    for (const key of keys) this.#taken.set(key, [...(this.#taken.get(key) ?? []), { fromMs, untilMs }]);
    return true;
  }

  /** Takes one of `count` places; `false` when there is none. */
  takePlace(name: string, count: number, fromMs: number, untilMs: number): boolean {
    return Array.from({ length: count }, (_, index) => `${name}/${index}`).some((key) =>
      this.take([key], fromMs, untilMs),
    );
  }
}

function planFaults(options: PlanOptions): PlannedFault[] {
  const dice = new Dice(streamSeed(options.seed, 'faults'));
  const occupancy = new Occupancy();
  const without = new Set(options.without);
  const faults: PlannedFault[] = [];
  const add = (fault: PlannedFault) => {
    if (fits(fault, options, occupancy)) faults.push(fault);
  };
  const certain = AT_LEAST_ONCE.filter(({ kind }) => !without.has(kind));
  for (const [index, one] of certain.entries()) {
    const share = ONCE_FROM + ((ONCE_UNTIL - ONCE_FROM) * index) / certain.length;
    add(drawFault(one.kind, Math.round(options.durationMs * share), options, dice, one));
  }
  const count = Math.round((options.durationMs / 1000) * FAULTS_PER_SECOND);
  const times = Array.from({ length: count }, () => Math.round(dice.between(0, options.durationMs)));
  for (const atMs of times.sort((one, other) => one - other)) {
    const fault = drawFault(dice.weighted(FAULT_WEIGHTS), atMs, options, dice, null);
    if (!without.has(fault.kind)) add(fault);
  }
  return faults.sort((one, other) => one.atMs - other.atMs);
}

/** Whether a fault may come beside those before it: what it befalls is left alone by what would make nothing of it. */
function fits(fault: PlannedFault, options: PlanOptions, occupancy: Occupancy): boolean {
  const { atMs } = fault;
  // Somebody must be there to take the guests.
  const goes = (untilMs: number) => occupancy.takePlace('silent', Math.max(1, options.sleds - 2), atMs, untilMs);
  switch (fault.kind) {
    case 'kill':
      return occupancy.take([`${fault.target}/${fault.index}`], atMs, atMs + fault.downMs + KILL_PAUSE_MS);
    case 'freeze':
      return occupancy.take([`${fault.target}/${fault.index}`], atMs, atMs + fault.durationMs + KILL_PAUSE_MS);
    case 'freeze-postgres':
      return occupancy.take(['postgres/0'], atMs, atMs + fault.durationMs + KILL_PAUSE_MS);
    case 'silent-sled': {
      const untilMs = atMs + fault.durationMs + 5_000;
      return occupancy.take([`sled-agent/${fault.sled}`], atMs, untilMs) && goes(untilMs);
    }
    case 'word': {
      // An expunged sled's place must be taken before the next one goes.
      const untilMs = atMs + fault.afterMs + 25_000;
      return occupancy.take([`sled-agent/${fault.sled}`], atMs, untilMs) && goes(untilMs);
    }
    case 'slip':
      return occupancy.take([`sled-agent/${fault.sled}`], atMs, atMs + 10_000);
    case 'full-disk':
      return occupancy.take([`disk/${fault.sled}`], atMs, atMs + fault.durationMs + 5_000);
    case 'clock':
      return occupancy.take([`clock/${fault.sled}`], atMs, atMs + fault.durationMs + 1_000);
    case 'impostor':
      return occupancy.take([`${fault.direction}/${fault.sled}`], atMs, atMs + fault.durationMs);
    case 'attributes':
      return occupancy.take(['attributes'], atMs, atMs + 20_000);
    case 'deploy':
      return occupancy.take(['deploy'], atMs, atMs + fault.promoteAfterMs + 60_000);
    case 'drain':
      return occupancy.take(['drain'], atMs, atMs + (fault.stopAfterMs ?? 0) + 20_000);
    case 'weather':
    case 'guest':
    case 'refusal':
    case 'migration':
      return true;
  }
}

/** Draws what a fault is like. `certain`: it comes in any case, and is of the sort that shows most. */
function drawFault(
  kind: FaultKind,
  atMs: number,
  options: PlanOptions,
  dice: Dice,
  certain: CertainFault | null,
): PlannedFault {
  const first = certain !== null;
  const sled = dice.below(options.sleds);
  const seconds = (from: number, to: number) => Math.round(dice.between(from * 1_000, to * 1_000));
  switch (kind) {
    case 'kill': {
      const target = certain?.target ?? dice.weighted(KILL_WEIGHTS);
      const counts = { worker: options.workers, api: options.apis, 'sled-agent': options.sleds };
      const drawn = target === 'postgres' || target === 'temporal' ? 0 : dice.below(counts[target]);
      // The sled that nothing else is certain to befall.
      const index = first && target === 'sled-agent' ? options.sleds - 1 : drawn;
      return { atMs, kind, target, index, downMs: Math.round(dice.between(0, 2_500)) };
    }
    case 'freeze': {
      // Long before a worker is certain to be killed.
      const target = first ? 'worker' : dice.pick(FREEZE_TARGETS);
      const index = dice.below(target === 'worker' ? options.workers : options.apis);
      return { atMs, kind, target, index, durationMs: seconds(1, first ? 5 : 20) };
    }
    case 'freeze-postgres': {
      const what = dice.pick(['connections', 'connections', 'postmaster', 'server'] as const);
      const long = options.durationMs >= 3 * LONG_ENOUGH_TO_HANG_MS && what === 'connections' && dice.chance(0.25);
      const durationMs = long ? LONG_ENOUGH_TO_HANG_MS : seconds(2, 14);
      return { atMs, kind, what: first ? 'connections' : what, durationMs: first ? 5_000 : durationMs };
    }
    case 'silent-sled': {
      const drawn = dice.pick(['frozen', 'cut', 'off'] as const);
      const durationMs = dice.chance(0.4) ? LONG_ENOUGH_TO_BE_DEAD_MS : seconds(2, 20);
      if (!first) return { atMs, kind, sled, how: drawn, durationMs };
      // The one with a lease: it lapses, the sled is declared dead, and comes back.
      const enough = Math.round(Math.min(LONG_ENOUGH_TO_BE_DEAD_MS, options.durationMs * 0.8));
      return { atMs, kind, sled: 0, how: 'cut', durationMs: enough };
    }
    case 'full-disk': {
      const durationMs = seconds(2, 25);
      // A bare sled has nothing on disk.
      const place = sledKind(sled) === 'bare' ? 0 : sled;
      return { atMs, kind, sled: first ? Math.min(1, options.sleds - 1) : place, durationMs };
    }
    case 'attributes':
      return { atMs, kind, which: dice.pick(['one', 'all'] as const), draw: dice.below(1_000) };
    case 'impostor': {
      const direction = dice.pick(LINK_DIRECTIONS);
      const impostor: Impostor = {
        status: dice.pick(IMPOSTOR_STATUSES),
        body: dice.pick(['html', 'html', 'json', 'nothing'] as const),
        share: dice.chance(0.5) ? 1 : dice.between(0.3, 1),
        carried: dice.chance(0.5) ? 0 : dice.between(0, 1),
      };
      const durationMs = seconds(1, 10);
      return { atMs, kind, sled, direction: first ? 'reports' : direction, durationMs, impostor };
    }
    case 'deploy':
      return { atMs, kind, promoteAfterMs: seconds(1, 20) };
    case 'clock': {
      const shiftMs = Math.round(dice.between(-30 * 24, 30 * 24) * HOUR_MS);
      return { atMs, kind, sled, shiftMs, durationMs: seconds(2, 20) };
    }
    case 'word': {
      const word = dice.pick(WORDS);
      const place = first ? Math.min(2, options.sleds - 1) : sled;
      const drawn = dice.pick(SLED_STATES);
      // Without a lease nothing ends the guests of a sled that is on: there the operator speaks the truth.
      const state = !first && sledKind(place) === 'fenced' ? drawn : 'off';
      const returns = dice.chance(0.5);
      return { atMs, kind, word: first ? 'expunge' : word, state, sled: place, afterMs: seconds(1, 25), returns };
    }
    case 'slip':
      return {
        atMs,
        kind,
        word: first ? 'expunge' : dice.pick(['declare-dead', 'expunge'] as const),
        sled: first ? Math.min(1, options.sleds - 1) : sled,
      };
    case 'drain': {
      const parallel = dice.pick([1, 2, 4, 8]);
      const stopAfterMs = dice.chance(0.4) ? seconds(1, 15) : null;
      return { atMs, kind, sled: first ? options.sleds - 1 : sled, parallel, stopAfterMs };
    }
    case 'weather':
      return {
        atMs,
        kind,
        sled,
        direction: dice.pick(LINK_DIRECTIONS),
        durationMs: seconds(1, 15),
        weather: {
          delay: dice.between(0.2, 0.9),
          maxDelayMs: dice.chance(0.3) ? LONG_ENOUGH_TO_TIME_OUT_MS : Math.round(dice.between(50, 1_500)),
          duplicate: dice.between(0, 0.5),
          loseRequest: dice.between(0, 0.3),
          loseAnswer: dice.between(0, 0.3),
        },
      };
    case 'guest':
      return {
        atMs,
        kind,
        what: dice.pick(['halt', 'crash', 'lose'] as const),
        slot: dice.below(options.instances),
      };
    case 'refusal': {
      const call = dice.pick(['register', 'state:running', 'state:migration_target'] as const);
      return { atMs, kind, sled, call, status: dice.pick([409, 503]) };
    }
    case 'migration':
      return {
        atMs,
        kind,
        sled,
        side: dice.pick(['source', 'target'] as const),
        point: dice.pick(['before', 'middle'] as const),
      };
  }
}
