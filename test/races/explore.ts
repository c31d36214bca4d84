/**
 * Tries every order of the steps of a few actors, depth first. Everything happens in one transaction of PostgreSQL, with
 * a savepoint at each fork: a common beginning is played once, and an order that leads to a state seen before (of the
 * database, the sleds and the scripts) is not followed again. The doctor looks after each step that changed something; at
 * the end of each order everything settles, and the doctor looks again, at rest.
 */
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import type { Database } from '../../db/connect.ts';
import * as schema from '../../db/schema.ts';
import { examine } from '../../doctor/examine.ts';
import { type Actor, WAIT } from './actors.ts';
import { firstStep, newWorld, type Scenario } from './scenarios.ts';
import { checkRest, fingerprint, settle } from './settle.ts';
import { guestsOf, nameOf, type World } from './world.ts';

/** What went wrong in one order of steps. */
export interface Violation {
  readonly scenario: Scenario;
  /** The actors' names, in the order in which each took its next step. */
  readonly schedule: readonly string[];
  /** What each of them did. */
  readonly steps: readonly string[];
  readonly wrongs: readonly string[];
}

export interface Explored {
  /** How many orders of steps are covered. */
  readonly orders: number;
  /** How many steps were played. */
  readonly steps: number;
  /** Whether nothing was left out for want of budget. */
  readonly complete: boolean;
  readonly violation: Violation | null;
}

/** One connection on which each transaction is a savepoint within one that is rolled back in the end. */
export class Playground {
  readonly db: Database;
  readonly #client: pg.Client;
  #depth = 0;

  private constructor(client: pg.Client) {
    this.#client = client;
    const facade = { query: (query: string | pg.QueryConfig, values?: unknown[]) => this.#query(query, values) };
    this.db = drizzle(facade as unknown as pg.Client, { schema });
  }

  static async open(url: string): Promise<Playground> {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    return new Playground(client);
  }

  /** Runs in a transaction of its own that leaves nothing behind. */
  async round<T>(run: () => Promise<T>): Promise<T> {
    await this.#client.query('BEGIN');
    try {
      return await run();
    } finally {
      this.#depth = 0;
      await this.#client.query('ROLLBACK');
    }
  }

  /** Runs, then takes everything back that it wrote. */
  async fork<T>(run: () => Promise<T>): Promise<T> {
    await this.#client.query('SAVEPOINT fork');
    try {
      return await run();
    } finally {
      await this.#client.query('ROLLBACK TO SAVEPOINT fork; RELEASE SAVEPOINT fork');
    }
  }

  async close(): Promise<void> {
    await this.#client.end();
  }

  async #query(query: string | pg.QueryConfig, values?: unknown[]) {
    const text = typeof query === 'string' ? query : query.text;
    const send = () => this.#client.query(query as pg.QueryConfig, values);
    if (text.startsWith('begin')) {
      this.#depth += 1;
      return this.#client.query('SAVEPOINT inner_transaction');
    }
    if (text === 'commit' || text === 'rollback') {
      this.#depth -= 1;
      if (text === 'commit') return this.#client.query('RELEASE SAVEPOINT inner_transaction');
      return this.#client.query('ROLLBACK TO SAVEPOINT inner_transaction; RELEASE SAVEPOINT inner_transaction');
    }
    // Outside a transaction a claim's statement is one of its own: what a constraint refuses is tried again.
    if (this.#depth > 0 || !text.startsWith('/* claim')) return send();
    await this.#client.query('SAVEPOINT statement');
    try {
      const result = await send();
      await this.#client.query('RELEASE SAVEPOINT statement');
      return result;
    } catch (error) {
      await this.#client.query('ROLLBACK TO SAVEPOINT statement; RELEASE SAVEPOINT statement');
      throw error;
    }
  }
}

/** What is wrong right now, by the doctor and by the sleds' truth. */
export async function wrongsNow(db: Database, world: World, atRest: boolean): Promise<string[]> {
  const { findings } = await examine({ db, atRest, journal: 'required' });
  const guests = guestsOf(world);
  return [
    ...world.wrongs,
    ...findings.map((finding) => `${finding.invariant}, ${finding.rule}: ${finding.message}`),
    ...(guests.length > 1
      ? [`4: two guests at once, on VMMs ${guests.map((vmm) => nameOf(world, vmm.id)).join(' and ')}`]
      : []),
  ];
}

/** What is wrong once everything has come to rest. Writes. */
export async function wrongsAtRest(db: Database, world: World): Promise<string[]> {
  await settle(db, world);
  const wrongs = await wrongsNow(db, world, true);
  return wrongs.length > 0 ? wrongs : checkRest(db, world);
}

/** Takes an actor's next step in `world`; returns what it did, or `null` when it can't happen yet. */
async function step(db: Database, world: World, actor: Actor): Promise<string | null> {
  const at = world.at[actor.name];
  if (at == null) return null;
  const next = await actor.steps[at]?.(db, world);
  if (next === WAIT) return null;
  world.at[actor.name] = next ?? null;
  return `${actor.name}: ${at}`;
}

/**
 * Explores, for every choice of `atOnce` actors of the scenario that may race, every order of their steps, until the first
 * one that goes wrong. `budget` bounds the steps that are played.
 */
export async function explore(
  playground: Playground,
  scenario: Scenario,
  options: { atOnce: number; budget?: number; among?: readonly Actor[] },
): Promise<Explored> {
  const { db } = playground;
  const actors = options.among ?? scenario.actors;
  const seen = new Map<string, number>();
  const rested = new Map<string, string[]>();
  let steps = 0;
  let violation: Violation | null = null;
  const isOver = () => violation !== null || steps >= (options.budget ?? Number.POSITIVE_INFINITY);

  /** Who may take the next step: those that have begun, and, while there are few of them, those that may join. */
  function candidates(world: World): Actor[] {
    const begun = actors.filter((actor) => world.at[actor.name] !== undefined);
    const going = begun.filter((actor) => world.at[actor.name] !== null);
    if (begun.length >= options.atOnce + (scenario.inProgress?.length ?? 0)) return going;
    const joining = actors.filter(
      (actor) => !begun.includes(actor) && begun.every((other) => !excludeEachOther(actor, other)),
    );
    return [...going, ...joining];
  }

  async function visit(world: World, print: string, schedule: string[], taken: string[]): Promise<number> {
    const key = `${print} ${JSON.stringify(world)}`;
    const known = seen.get(key);
    if (known !== undefined) return known;
    let orders = 0;
    let goesOn = false;
    for (const actor of candidates(world)) {
      if (isOver()) return orders;
      orders += await playground.fork(async () => {
        const next = structuredClone(world);
        next.at[actor.name] ??= firstStep(scenario, actor);
        const did = await step(db, next, actor);
        if (did === null) return 0;
        steps += 1;
        if (world.at[actor.name] !== undefined) goesOn = true;
        const [order, done] = [
          [...schedule, actor.name],
          [...taken, did],
        ];
        const after = await fingerprint(db);
        const wrongs = after === print ? next.wrongs : await wrongsNow(db, next, false);
        if (wrongs.length > 0) {
          violation = { scenario, schedule: order, steps: done, wrongs };
          return 1;
        }
        return visit(next, after, order, done);
      });
    }
    // Whoever has begun has ended, or waits for what will not come.
    if (!goesOn && !isOver()) {
      orders += 1;
      const { at: _, ...rest } = world;
      const state = `${print} ${JSON.stringify(rest)}`;
      const wrongs = rested.get(state) ?? (await playground.fork(() => wrongsAtRest(db, structuredClone(world))));
      rested.set(state, wrongs);
      if (wrongs.length > 0) violation = { scenario, schedule, steps: taken, wrongs };
    }
    seen.set(key, orders);
    return orders;
  }

  const orders = await playground.round(async () => {
    const world = await newWorld(db);
    await scenario.prepare(db, world);
    for (const actor of actors)
      if (scenario.inProgress?.includes(actor.name)) world.at[actor.name] = firstStep(scenario, actor);
    return visit(world, await fingerprint(db), [], []);
  });
  return { orders, steps, complete: !isOver() || violation !== null, violation };
}

/** Two variants of one attempt don't race each other, and there is one hand-over at a time. */
export function excludeEachOther(a: Actor, b: Actor): boolean {
  const root = (actor: Actor) =>
    actor.name.startsWith('hand-over') ? 'hand-over' : actor.name.replace(/ \((?!active|target).*/, '');
  return root(a) === root(b);
}

/**
 * Plays one order of steps, then the rest of the scripts that it began, one after the other, and what follows at rest.
 * `null` when nothing is wrong. Steps that can't happen are left out.
 */
export async function replay(
  playground: Playground,
  scenario: Scenario,
  schedule: readonly string[],
): Promise<Violation | null> {
  const { db } = playground;
  const { actors } = scenario;
  for (const name of schedule) {
    if (!actors.some((actor) => actor.name === name))
      throw new Error(`there is no actor "${name}": ${actors.map((actor) => actor.name).join(', ')}`);
  }
  const taking = actors.filter((actor) => schedule.includes(actor.name) || scenario.inProgress?.includes(actor.name));
  return playground.round(async () => {
    const world = await newWorld(db);
    await scenario.prepare(db, world);
    for (const actor of taking) world.at[actor.name] = firstStep(scenario, actor);
    const [order, steps]: [string[], string[]] = [[], []];
    const violation = (wrongs: string[]) => (wrongs.length === 0 ? null : { scenario, schedule: order, steps, wrongs });
    const play = async (actor: Actor, scheduled: boolean) => {
      const did = await step(db, world, actor);
      if (did === null) return { moved: false, found: null };
      if (scheduled) order.push(actor.name);
      steps.push(did);
      return { moved: true, found: violation(await wrongsNow(db, world, false)) };
    };
    for (const name of schedule) {
      const actor = taking.find((each) => each.name === name);
      const { found } = actor === undefined ? { found: null } : await play(actor, true);
      if (found !== null) return found;
    }
    for (let moved = true; moved; ) {
      moved = false;
      for (const actor of taking) {
        const played = await play(actor, false);
        if (played.found !== null) return played.found;
        moved ||= played.moved;
      }
    }
    return violation(await wrongsAtRest(db, world));
  });
}

/** Makes a violation as short as it gets: leaves out steps, one after the other, as long as something is still wrong. */
export async function shrink(playground: Playground, violation: Violation): Promise<Violation> {
  let shortest = violation;
  for (let index = shortest.schedule.length - 1; index >= 0; index--) {
    const schedule = shortest.schedule.filter((_, at) => at !== index);
    const still = await replay(playground, shortest.scenario, schedule);
    if (still !== null) {
      shortest = still;
      index = Math.min(index, shortest.schedule.length);
    }
  }
  return shortest;
}

/** A violation as text, with the command that runs only it. */
export function describeViolation(violation: Violation): string {
  const order = violation.schedule.join(' > ');
  return [
    `from "${violation.scenario.name}":`,
    ...violation.steps.map((each, index) => `  ${index + 1}. ${each}`),
    'then:',
    ...violation.wrongs.map((wrong) => `  ! ${wrong}`),
    'only this one:',
    `  RACE='${violation.scenario.name}: ${order}' npx vitest run test/races/orders.test.ts`,
  ].join('\n');
}
