import { sql } from 'drizzle-orm';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Queryable } from '../../db/connect.ts';
import { network } from '../../db/network.ts';
import { type NetworkCursor, type NetworkEntry, readNetworkChanges } from '../../db/queries/read-network-changes.ts';
import { startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

let database: TestDatabase;
let project: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());
beforeEach(async () => {
  await database.empty();
  project = await database.project();
  await database.sled({ threads: 1024 });
});

/** A poller as the protocol asks for: it keeps a table, a page at a time. */
class Poller {
  readonly table = new Map<string, NetworkEntry>();
  readonly #limit: number;
  cursor: NetworkCursor | null = null;
  resets = 0;
  delivered = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  async pass(): Promise<void> {
    for (;;) {
      const { entries, cursor, more, reset } = await readNetworkChanges(database.db, this.cursor, this.#limit);
      expect(entries.length).toBeLessThanOrEqual(this.#limit);
      if (reset) {
        this.resets += 1;
        this.table.clear();
      }
      for (const entry of entries) {
        this.delivered += 1;
        const known = this.table.get(entry.instance_id);
        // What was read later is never older.
        expect(entry.generation).toBeGreaterThanOrEqual(known?.generation ?? 0);
        this.table.set(entry.instance_id, entry);
      }
      this.cursor = cursor;
      if (!more) return;
    }
  }

  /** What lives, by instance: the VMM and the generation. */
  living(): Map<string, string> {
    return new Map(
      [...this.table]
        .filter(([, entry]) => entry.vmm_id !== null)
        .map(([id, entry]) => [id, `${entry.vmm_id} ${entry.generation}`]),
    );
  }
}

async function stored(): Promise<Map<string, string>> {
  const result = await database.db.execute(
    sql`SELECT instance_id, vmm_id, generation FROM instance_network WHERE vmm_id IS NOT NULL`,
  );
  return new Map(result.rows.map((row) => [String(row.instance_id), `${row.vmm_id} ${row.generation}`]));
}

async function vmmOf(instanceId: string): Promise<string> {
  const { vmmId } = await database.start(instanceId);
  return vmmId;
}

const placeOf = (vmmId: string) =>
  sql`SELECT instance_id, sled_id, id AS vmm_id, ip, port FROM vmm WHERE id = ${vmmId}`;
const ensure = (db: Queryable, vmmId: string) => db.execute(network.ensure(placeOf(vmmId)));
const remove = (db: Queryable, instanceId: string) =>
  db.execute(network.remove(sql`SELECT ${instanceId}::uuid AS instance_id, NULL::uuid AS vmm_id`));

test('ensure and remove are idempotent, and each change raises the generation by one', async () => {
  const instance = await database.instance(project);
  const vmm = await vmmOf(instance);
  const poller = new Poller(10);
  const generations: (number | undefined)[] = [];
  for (const act of [ensure, ensure, remove, remove, ensure]) {
    await (act === ensure ? ensure(database.db, vmm) : remove(database.db, instance));
    await poller.pass();
    generations.push(poller.table.get(instance)?.generation);
  }
  expect(generations).toEqual([1, 1, 2, 2, 3]);
});

test('a removal that names a VMM leaves a newer one alone', async () => {
  const instance = await database.instance(project);
  const vmm = await vmmOf(instance);
  await database.db.execute(
    network.remove(
      sql`SELECT ${instance}::uuid AS instance_id, ${'00000000-0000-4000-8000-000000000001'}::uuid AS vmm_id`,
    ),
  );
  expect(await stored()).toEqual(new Map([[instance, `${vmm} 1`]]));
});

test('a change that commits after a later one was read is not missed', async () => {
  const [early = '', late = ''] = [await database.instance(project), await database.instance(project)];
  await vmmOf(early);
  await vmmOf(late);
  const poller = new Poller(10);
  await poller.pass();

  // The early one takes its number first and commits last.
  const open = new pg.Client({ connectionString: database.pool.options.connectionString });
  await open.connect();
  try {
    await open.query('BEGIN');
    await open.query(
      `UPDATE instance_network SET sled_id = NULL, vmm_id = NULL, ip = NULL, port = NULL, generation = generation + 1,
         changed_in = pg_current_xact_id() WHERE instance_id = $1`,
      [early],
    );
    await remove(database.db, late);
    await poller.pass();
    expect(poller.table.get(late)?.vmm_id).toBeNull();
    expect(poller.table.get(early)?.vmm_id).not.toBeNull();
    await poller.pass();
    await open.query('COMMIT');
    await poller.pass();
    expect(poller.table.get(early)?.vmm_id).toBeNull();
  } finally {
    await open.end();
  }
});

test('pages of one: a pass that is overtaken by changes misses none', async () => {
  const instances: string[] = [];
  for (let n = 0; n < 6; n++) {
    const id = await database.instance(project);
    await vmmOf(id);
    instances.push(id);
  }
  const poller = new Poller(1);
  // Between the pages of a first list, the ones already read change again.
  let page = await readNetworkChanges(database.db, null, 1);
  const seen = new Map<string, NetworkEntry>();
  for (let n = 0; ; n++) {
    for (const entry of page.entries) seen.set(entry.instance_id, entry);
    poller.cursor = page.cursor;
    if (!page.more) break;
    await remove(database.db, instances[n] ?? '');
    page = await readNetworkChanges(database.db, page.cursor, 1);
  }
  for (const [id, entry] of seen) poller.table.set(id, entry);
  await poller.pass();
  expect(poller.living()).toEqual(await stored());
});

test('many writers at once, whose transactions end in any order: a poller sees every change, and comes to rest', async () => {
  const instances: { id: string; vmm: string }[] = [];
  for (let n = 0; n < 24; n++) {
    const id = await database.instance(project);
    instances.push({ id, vmm: await vmmOf(id) });
  }
  const poller = new Poller(7);
  let writing = true;
  const writer = async (mine: { id: string; vmm: string }[], seed: number) => {
    for (let round = 0; round < 25; round++) {
      await database.db
        .transaction(async (transaction) => {
          for (const { id, vmm } of mine) {
            if ((round + seed) % 2 === 0) await remove(transaction, id);
            else await ensure(transaction, vmm);
            // Other transactions begin and end in between.
            if ((round * 7 + seed) % 3 === 0) await transaction.execute(sql`SELECT pg_sleep(0.002)`);
          }
          if ((round + seed) % 11 === 0) transaction.rollback();
        })
        .catch((error: unknown) => {
          if (!(error instanceof Error) || !/rollback/i.test(error.message)) throw error;
        });
    }
  };
  const writers = Promise.all(
    Array.from({ length: 8 }, (_, n) => writer(instances.slice(n * 3, n * 3 + 3), n)),
  ).finally(() => {
    writing = false;
  });
  while (writing) await poller.pass();
  await writers;
  await poller.pass();
  expect(poller.living()).toEqual(await stored());

  // With nobody writing, nothing is delivered twice for ever.
  await poller.pass();
  const before = poller.delivered;
  await poller.pass();
  expect(poller.delivered).toBe(before);
  expect(poller.resets).toBe(1);
});

test('a cursor from a future that this database never had begins anew', async () => {
  const instance = await database.instance(project);
  const vmm = await vmmOf(instance);
  const poller = new Poller(10);
  poller.cursor = { since: '9000000000000000000', initial: false, page: null };
  await poller.pass();
  expect(poller.resets).toBe(1);
  expect(poller.living()).toEqual(new Map([[instance, `${vmm} 1`]]));
});

describe('after the database was restored elsewhere', () => {
  /** As pg_restore leaves it in a cluster that is younger than the dumped one: numbers of transactions still to come. */
  async function restore(): Promise<void> {
    await database.db.transaction(async (transaction) => {
      await transaction.execute(sql`SET LOCAL session_replication_role = replica`);
      await transaction.execute(sql`
        UPDATE instance_network SET changed_in = (pg_current_xact_id()::text::bigint + 1000000)::text::xid8`);
      await transaction.execute(sql`
        UPDATE network_horizon SET database_history = 'another', forgotten_to = (pg_current_xact_id()::text::bigint + 1000000)::text::xid8`);
    });
  }

  test('one reset numbers the table anew: the polls after it list nothing that was read', async () => {
    const instances = await Promise.all(Array.from({ length: 26 }, () => database.instance(project)));
    for (const id of instances) await vmmOf(id);
    await restore();
    for (const poller of [new Poller(100), new Poller(7)]) {
      await poller.pass();
      expect(poller.living()).toEqual(await stored());
      const before = poller.delivered;
      for (let n = 0; n < 3; n++) await poller.pass();
      expect(poller.delivered).toBe(before);
      expect(poller.resets).toBe(1);
    }
    // What changes from then on is heard of.
    const poller = new Poller(7);
    await poller.pass();
    await remove(database.db, instances[3] ?? '');
    await poller.pass();
    expect(poller.table.get(instances[3] ?? '')?.vmm_id).toBeNull();
  });

  test('many pollers at once number it anew together', async () => {
    for (let n = 0; n < 12; n++) await vmmOf(await database.instance(project));
    await restore();
    const pollers = Array.from({ length: 8 }, () => new Poller(5));
    await Promise.all(pollers.map((poller) => poller.pass()));
    for (const poller of pollers) {
      await poller.pass();
      const before = poller.delivered;
      await poller.pass();
      expect(poller.delivered).toBe(before);
      expect(poller.living()).toEqual(await stored());
    }
  });

  test.each([
    ['by another cluster', 0],
    ['after another server took over', 1],
    ['as another database', 2],
    ['into a table that was made anew', 3],
  ])('a cursor that was given out %s begins anew, whatever its number', async (_, part) => {
    const instance = await database.instance(project);
    await vmmOf(instance);
    const poller = new Poller(10);
    await poller.pass();
    const { history = '' } = poller.cursor ?? {};
    const parts = history.split('/');
    expect(parts).toHaveLength(4);
    parts[part] = `${parts[part]}1`;
    // The removal that it has not read has a lower number than its own, as in a cluster that has come further.
    await remove(database.db, instance);
    const { rows } = await database.db.execute(sql`SELECT pg_current_xact_id()::text AS now`);
    poller.cursor = { history: parts.join('/'), since: String(rows[0]?.now), initial: false, page: null };
    await poller.pass();
    expect(poller.resets).toBe(2);
    expect(poller.living()).toEqual(await stored());
  });
});
