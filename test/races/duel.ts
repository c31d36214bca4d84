/**
 * Two transactions that truly overlap. The first one is held after one of its statements, with all its locks and before
 * its commit; the second one begins then, and either ends, or waits for the first one, on a snapshot from before its
 * commit; then the first one goes on. Each statement of the first one is such a moment.
 */
import { drizzle } from 'drizzle-orm/node-postgres';
import pg from 'pg';
import type { Database } from '../../db/connect.ts';
import { databaseError } from '../../db/errors.ts';
import * as schema from '../../db/schema.ts';
import { type Actor, WAIT } from './actors.ts';
import { wrongsAtRest, wrongsNow } from './explore.ts';
import { firstStep, forgetRows, newWorld, type Scenario } from './scenarios.ts';
import type { World } from './world.ts';

/** An actor and how many of its steps were taken before the duel. */
export interface Duellist {
  readonly actor: Actor;
  readonly before: number;
  /** The step that it takes in the duel. */
  readonly step: string;
}

/** A connection that can be held after a statement of its choice. */
export class HeldConnection {
  readonly db: Database;
  readonly #client: pg.Client;
  #holdAfter = 0;
  #statements = 0;
  #inTransaction = false;
  #held: () => void = () => {};
  #release: Promise<void> = Promise.resolve();
  #goOn: () => void = () => {};
  processId = 0;

  private constructor(client: pg.Client) {
    this.#client = client;
    const facade = { query: (query: string | pg.QueryConfig, values?: unknown[]) => this.#query(query, values) };
    this.db = drizzle(facade as unknown as pg.Client, { schema });
  }

  static async open(url: string): Promise<HeldConnection> {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const connection = new HeldConnection(client);
    await client.query(`SET deadlock_timeout = '100ms'`);
    const result = await client.query('SELECT pg_backend_pid() AS pid');
    connection.processId = Number(result.rows[0]?.pid);
    return connection;
  }

  /** Holds the next run after its `count`-th statement (0: never); resolves when it is held there. */
  holdAfter(count: number): Promise<void> {
    this.#holdAfter = count;
    this.#statements = 0;
    this.#release = new Promise((resolve) => {
      this.#goOn = resolve;
    });
    return new Promise((resolve) => {
      this.#held = resolve;
    });
  }

  goOn(): void {
    this.#goOn();
  }

  async close(): Promise<void> {
    await this.#client.end();
  }

  async #query(query: string | pg.QueryConfig, values?: unknown[]) {
    const text = typeof query === 'string' ? query : query.text;
    const send = () => this.#client.query(query as pg.QueryConfig, values);
    if (text.startsWith('begin') || text === 'commit' || text === 'rollback') {
      this.#inTransaction = text.startsWith('begin');
      return send();
    }
    this.#statements += 1;
    const holds = this.#statements === this.#holdAfter;
    if (!holds) return send();
    if (this.#inTransaction) {
      const result = await send();
      await this.#hold();
      return result;
    }
    // A statement of its own commits when it ends: it is held in between.
    await this.#client.query('BEGIN');
    try {
      const result = await send();
      await this.#hold();
      await this.#client.query('COMMIT');
      return result;
    } catch (error) {
      await this.#client.query('ROLLBACK');
      throw error;
    }
  }

  async #hold(): Promise<void> {
    this.#held();
    await this.#release;
  }
}

/** Errors by which PostgreSQL breaks a transaction off for the sake of another one: it is tried again. */
const TRIED_AGAIN = new Set(['40001', '40P01']);

export interface DuelResult {
  /** `false` when the first one ended before it was held: there is no such moment. */
  readonly held: boolean;
  /** Whether the second one had to wait. */
  readonly waited: boolean;
  readonly wrongs: readonly string[];
}

/** Lets two steps overlap, the first one held after its `holdAfter`-th statement; then everything ends and rests. */
export async function duel(
  parts: { plain: Database; first: HeldConnection; second: HeldConnection },
  scenario: Scenario,
  [one, other]: readonly [Duellist, Duellist],
  holdAfter: number,
): Promise<DuelResult | null> {
  const { plain, first, second } = parts;
  const world = await newWorld(plain);
  try {
    await scenario.prepare(plain, world);
    for (const { actor, before, step } of [one, other]) {
      world.at[actor.name] = firstStep(scenario, actor);
      for (let taken = 0; taken < before; taken++) if (!(await take(plain, world, actor))) return null;
      if (world.at[actor.name] !== step) return null;
    }
    const isHeld = first.holdAfter(holdAfter);
    const ends = outcome(take(first.db, world, one.actor));
    const held = await Promise.race([isHeld.then(() => true), ends.then(() => false)]);
    if (!held) return { held, waited: false, wrongs: [] };
    second.holdAfter(0);
    let otherEnded = false;
    const otherEnds = outcome(take(second.db, world, other.actor)).finally(() => {
      otherEnded = true;
    });
    while (!otherEnded && !(await isBlocked(plain, second.processId)))
      await new Promise((resolve) => setTimeout(resolve, 1));
    const waited = !otherEnded;
    first.goOn();
    const errors = [await ends, await otherEnds];
    for (const [index, error] of errors.entries()) {
      if (error === null) continue;
      if (!TRIED_AGAIN.has(databaseError(error)?.code ?? '')) return { held, waited, wrongs: [String(error)] };
      const again = await outcome(take(plain, world, index === 0 ? one.actor : other.actor));
      if (again !== null) return { held, waited, wrongs: [String(again)] };
    }
    const now = await wrongsNow(plain, world, false);
    if (now.length > 0) return { held, waited, wrongs: now };
    for (let moved = true; moved; ) {
      moved = false;
      for (const { actor } of [one, other])
        moved = (world.at[actor.name] != null && (await take(plain, world, actor))) || moved;
    }
    for (const actor of scenario.actors) {
      if (!scenario.inProgress?.includes(actor.name) || [one.actor, other.actor].includes(actor)) continue;
      world.at[actor.name] = firstStep(scenario, actor);
      while (await take(plain, world, actor));
    }
    const later = await wrongsNow(plain, world, false);
    return { held, waited, wrongs: later.length > 0 ? later : await wrongsAtRest(plain, world) };
  } finally {
    first.goOn();
    await forgetRows(plain);
  }
}

async function take(db: Database, world: World, actor: Actor): Promise<boolean> {
  const at = world.at[actor.name];
  if (at == null) return false;
  const next = await actor.steps[at]?.(db, world);
  if (next === WAIT) return false;
  world.at[actor.name] = next ?? null;
  return true;
}

async function outcome(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => null,
    (error: unknown) => error,
  );
}

async function isBlocked(db: Database, processId: number): Promise<boolean> {
  const result = await db.execute(`SELECT cardinality(pg_blocking_pids(${processId})) > 0 AS blocked`);
  return result.rows[0]?.blocked === true;
}

/** Every step that an actor comes to when it acts alone, or after `prelude` has. */
export async function stepsOf(plain: Database, scenario: Scenario, actor: Actor): Promise<Duellist[]> {
  const world = await newWorld(plain);
  const found: Duellist[] = [];
  try {
    await scenario.prepare(plain, world);
    world.at[actor.name] = firstStep(scenario, actor);
    for (let before = 0; ; before++) {
      const step = world.at[actor.name];
      if (step == null) return found;
      found.push({ actor, before, step });
      if (!(await take(plain, world, actor))) return found;
    }
  } finally {
    await forgetRows(plain);
  }
}
