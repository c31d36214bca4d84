/**
 * The log of changes, and how it is read: each change that was committed once, however late it was; what can't be read any more is
 * said. And the feed of an API, which reads it for all.
 */
import { randomUUID } from 'node:crypto';
import { PassThrough } from 'node:stream';
import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import pg from 'pg';
import { pino } from 'pino';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { ChangeFeed, type FeedPace } from '../../api/events/change-feed.ts';
import { EventStream } from '../../api/events/event-stream.ts';
import type { Database } from '../../db/connect.ts';
import { OperationOutcomes } from '../../db/operation-outcomes.ts';
import {
  type ChangeCursor,
  MOST_CHANGES,
  readChangeCursor,
  readChanges,
  writeChangeCursor,
} from '../../db/queries/read-changes.ts';
import { EventParser, type RawEvent } from '../../model/event-parser.ts';
import { EVENT_KINDS, type EventKind } from '../../wire/operator-api/events.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { eventually } from '../support/wait.ts';

let database: TestDatabase;
const clients: pg.Client[] = [];
beforeAll(async () => {
  database = await startTestDatabase();
  for (let made = 0; made < 4; made++) {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    clients.push(client);
  }
});
afterAll(async () => {
  await Promise.all(clients.map((client) => client.end()));
  await database?.stop();
});
beforeEach(async () => {
  await database.clear();
  await database.db.execute(sql`DELETE FROM change_log`);
});

const NOTE = `SELECT note_change('instance', $1, NULL)`;
const note = (id: string = randomUUID()) => database.db.execute(sql`SELECT note_change('instance', ${id}, NULL)`);

/** A reader that keeps its cursor as text between two readings, as one that is cut each time. */
class Reader {
  readonly found: string[] = [];
  readonly missed: string[] = [];
  #cursor: string | null = null;

  async read(): Promise<void> {
    const after: ChangeCursor | null = this.#cursor === null ? null : readChangeCursor(this.#cursor);
    expect(after === null).toBe(this.#cursor === null);
    const { changes, cursor, missed } = await readChanges(database.db, after);
    this.found.push(...changes.map(({ id }) => id));
    if (missed !== null) this.missed.push(missed);
    this.#cursor = writeChangeCursor(cursor);
  }
}

test('each change that is committed is read once, however its transaction overlaps with others and with the readings', async () => {
  const steps = fc.array(
    fc.record({ client: fc.nat(3), what: fc.constantFrom('note', 'note', 'commit', 'rollback', 'read') }),
    { minLength: 5, maxLength: 40 },
  );
  await fc.assert(
    fc.asyncProperty(steps, async (plan) => {
      const reader = new Reader();
      await reader.read();
      const committed: string[] = [];
      const open = clients.map(() => null as string[] | null);
      const end = async (at: number, how: 'commit' | 'rollback') => {
        const noted = open[at];
        if (noted == null) return;
        await clients[at]?.query(how);
        if (how === 'commit') committed.push(...noted);
        open[at] = null;
      };
      for (const { client: at, what } of plan) {
        if (what === 'read') await reader.read();
        else if (what !== 'note') await end(at, what as 'commit' | 'rollback');
        else {
          if (open[at] === null) await clients[at]?.query('BEGIN');
          const id = randomUUID();
          await clients[at]?.query(NOTE, [id]);
          open[at] = [...(open[at] ?? []), id];
        }
      }
      for (const at of clients.keys()) await end(at, 'commit');
      await reader.read();
      expect(reader.missed).toEqual([]);
      expect([...reader.found].sort()).toEqual(committed.sort());
    }),
    { numRuns: 15 },
  );
});

describe('a reader that can’t go on where it stands is told so', () => {
  const now = async () => (await readChanges(database.db, null)).cursor;

  test('when what it has missed is forgotten, and not before', async () => {
    const before = await now();
    await note();
    const between = await now();
    await note('00000000-0000-4000-8000-000000000001');
    await database.db.execute(sql`SELECT forget_changes((SELECT min(id) FROM change_log))`);
    expect(await readChanges(database.db, before)).toMatchObject({ missed: 'too_old', changes: [] });
    expect(await readChanges(database.db, between)).toMatchObject({ missed: null, changes: [{ kind: 'instance' }] });
  });

  test('but not for the sake of a transaction that lasts: nothing of it is forgotten', async () => {
    const [lasting] = clients;
    await lasting?.query('BEGIN');
    await lasting?.query(NOTE, ['00000000-0000-4000-8000-000000000002']);
    await note();
    const cursor = await now();
    await database.db.execute(sql`SELECT forget_changes((SELECT max(id) FROM change_log))`);
    expect(await readChanges(database.db, cursor)).toMatchObject({ missed: null, changes: [] });
    await lasting?.query('COMMIT');
    // Now what it had noted may be forgotten too: nobody can tell.
    expect(await readChanges(database.db, cursor)).toMatchObject({ missed: 'too_old' });
  });

  test('when the database has another history: the log is emptied, once', async () => {
    const cursor = await now();
    await note();
    await database.db.execute(sql`UPDATE change_horizon SET database_history = 'another'`);
    expect(await readChanges(database.db, cursor)).toMatchObject({ missed: 'other_history' });
    expect((await database.db.execute(sql`SELECT FROM change_log`)).rows).toHaveLength(0);
    const fresh = await now();
    await note();
    expect(await readChanges(database.db, fresh)).toMatchObject({ missed: null, changes: [{ kind: 'instance' }] });
    expect(await readChanges(database.db, cursor)).toMatchObject({ missed: 'too_old' });
  });

  test('when its numbers are not of this database', async () => {
    const { history, snapshot } = await now();
    expect(await readChanges(database.db, { history: '0'.repeat(12), snapshot })).toMatchObject({
      missed: 'other_history',
    });
    const ahead = { history, snapshot: '9000000000:9000000000:' };
    expect(await readChanges(database.db, ahead)).toMatchObject({ missed: 'other_history' });
  });

  test('when it is more than a list would be', async () => {
    const cursor = await now();
    await database.db.execute(sql`INSERT INTO change_log (kind, object_id)
      SELECT 'instance', gen_random_uuid() FROM generate_series(1, ${MOST_CHANGES + 1}::int)`);
    expect(await readChanges(database.db, cursor)).toMatchObject({ missed: 'too_old' });
  });
});

test('the log keeps itself small: who notes the thousandth forgets what is far behind', async () => {
  await note();
  const before = (await readChanges(database.db, null)).cursor;
  await note();
  const { rows } = await database.db.execute<{ id: string }>(sql`SELECT max(id) AS id FROM change_log`);
  const next = (Math.floor((Number(rows[0]?.id) + 200_000) / 1_000) + 1) * 1_000;
  await database.db.execute(sql`ALTER TABLE change_log ALTER COLUMN id RESTART WITH ${sql.raw(String(next))}`);
  await note();
  expect((await database.db.execute(sql`SELECT FROM change_log`)).rows).toHaveLength(1);
  expect(await readChanges(database.db, before)).toMatchObject({ missed: 'too_old' });
});

test('what can be seen is noted, and that a sled was heard of is not', async () => {
  const { db } = database;
  const project = await database.addProject();
  const sledId = await database.addSled();
  const id = await database.addInstance(project);
  const vmmId = randomUUID();
  const operationId = randomUUID();
  const noted = async (statement: ReturnType<typeof sql>) => {
    const { cursor } = await readChanges(db, null);
    await db.execute(statement);
    const { changes } = await readChanges(db, cursor);
    return changes.map((change) => `${change.kind} ${change.project_id === project ? 'of project' : ''}`.trim()).sort();
  };
  const vmm = sql`INSERT INTO vmm (id, instance_id, sled_id, ip, port, state) VALUES (${vmmId}, ${id}, ${sledId}, '10.0.0.1', 1, 'creating')`;
  expect(await noted(vmm)).toEqual(['instance of project', 'sled']);
  expect(await noted(sql`UPDATE vmm SET state = 'running', state_generation = 2`)).toEqual([
    'instance of project',
    'sled',
  ]);
  expect(await noted(sql`UPDATE vmm SET state_generation = 3`)).toEqual([]);
  expect(await noted(sql`UPDATE instance SET description = 'x'`)).toEqual(['instance of project']);
  expect(await noted(sql`UPDATE instance SET description = 'x'`)).toEqual([]);
  expect(await noted(sql`UPDATE sled SET last_answered_at = now(), time_modified = now()`)).toEqual([]);
  const renewal = sql`UPDATE sled SET lease_renewed_at = now(), lease_confirmed_at = now() WHERE lease_ms IS NOT NULL`;
  expect(await noted(renewal)).toEqual([]);
  expect(await noted(sql`UPDATE sled SET silent_since = now()`)).toEqual(['sled']);
  expect(await noted(sql`UPDATE sled SET policy = 'no_provision'`)).toEqual(['sled']);
  expect(await noted(sql`UPDATE project SET description = 'x'`)).toEqual(['project of project']);
  expect(await noted(sql`UPDATE project SET charged_cpus = 1`)).toEqual([]);
  const begun = sql`INSERT INTO operation (id, kind, instance_id, workflow_id) VALUES (${operationId}, 'start', ${id}, 'w')`;
  expect(await noted(begun)).toEqual(['operation of project']);
  expect(await noted(sql`UPDATE operation SET vmm_id = ${vmmId}`)).toEqual([]);
  expect(await noted(sql`UPDATE operation SET succeeded = true, time_ended = now()`)).toEqual(['operation of project']);
});

describe('the feed of an API', () => {
  const NEVER_MS = 24 * 3_600_000;
  const SLOW: FeedPace = {
    awakeMs: 5,
    staysAwakeMs: 0,
    restMs: NEVER_MS,
    deafMs: NEVER_MS,
    lookMs: NEVER_MS,
    beatMs: NEVER_MS,
  };
  const log = pino({ level: 'silent' });

  /** A feed whose statements are counted. */
  function counted(listener: { hears: boolean; onChange(heard: () => void): void }, pace: Partial<FeedPace> = {}) {
    let statements = 0;
    const db = new Proxy(database.db, {
      get(target, property) {
        if (property === 'execute' || property === 'select') statements += 1;
        const value: unknown = Reflect.get(target, property, target);
        return typeof value === 'function' ? value.bind(target) : value;
      },
    }) as Database;
    const source = { db, webUiLink: () => null };
    const feed = new ChangeFeed({ source, listener, log }, { ...SLOW, ...pace });
    return { feed, statements: () => statements };
  }
  const deaf = { hears: false, onChange: () => {} };

  function reader(kinds: readonly EventKind[] = EVENT_KINDS) {
    const out = new PassThrough();
    const events: RawEvent[] = [];
    const parser = new EventParser();
    out.on('data', (piece: Buffer) => events.push(...parser.take(piece.toString('utf8'))));
    const stream = new EventStream(out, { kinds: new Set(kinds), projectId: null, instanceId: null }, null);
    return { stream, events, lastId: () => parser.lastId };
  }

  test('asks for nothing while nobody reads, and once for all who do', async () => {
    const { feed, statements } = counted(deaf, { deafMs: 1 });
    expect([feed.isReading, statements()]).toEqual([false, 0]);
    const kinds = ['instance'] as const;
    const id = await database.addInstance(await database.addProject());
    const many = Array.from({ length: 200 }, () => reader(kinds));
    await Promise.all(many.map(({ stream }) => feed.join(stream, null)));
    const before = statements();
    await database.db.execute(sql`UPDATE instance SET description = 'seen' WHERE id = ${id}`);
    await eventually(
      () => many.every(({ events }) => events.some(({ event }) => event === 'instance')),
      'not all heard',
    );
    for (const { events } of many) expect(events.map(({ event }) => event)).toEqual(['reset', 'instance']);
    // Looks that found nothing, one that found it, and one for the instance: none of them for a reader.
    const looks = statements() - before;
    const { feed: alone, statements: ofOne } = counted(deaf, { deafMs: 1 });
    const one = reader(kinds);
    await alone.join(one.stream, null);
    expect(ofOne()).toBeLessThan(5);
    expect(looks).toBeGreaterThan(1);
    for (const { stream } of many) feed.leave(stream);
    alone.leave(one.stream);
    await eventually(() => !feed.isReading && !alone.isReading, 'it goes on reading for nobody');
    expect(feed.size).toBe(0);
  });

  test('a thousand changes of ten objects are ten events', async () => {
    const { feed } = counted(deaf, { deafMs: 1 });
    const project = await database.addProject();
    const ids: string[] = [];
    for (let made = 0; made < 10; made++) ids.push(await database.addInstance(project));
    const { stream, events } = reader(['instance']);
    await feed.join(stream, null);
    await database.db.execute(sql`
      SELECT note_change('instance', (${sql.raw(`ARRAY['${ids.join("','")}']::uuid[]`)})[1 + number % 10], ${project})
      FROM generate_series(0, 999) AS number`);
    await eventually(() => events.at(-1)?.id != null && events.length > 1, 'no batch came');
    expect(events.slice(1).map(({ event }) => event)).toEqual(Array.from({ length: 10 }, () => 'instance'));
    feed.leave(stream);
  });

  test('sleeps until PostgreSQL says that something changed, and looks by itself where it does not hear', async () => {
    const outcomes = new OperationOutcomes({ url: database.url, db: database.db, log, applicationName: 'feed-test' });
    outcomes.start();
    await eventually(() => outcomes.hears, 'it does not hear');
    // The first change after a second without one is said.
    const hearing = counted(outcomes);
    const looking = counted(deaf, { deafMs: 1 });
    const [heard, looked] = [reader(['project']), reader(['project'])];
    await hearing.feed.join(heard.stream, null);
    await looking.feed.join(looked.stream, null);
    await database.db.execute(sql`DELETE FROM change_log`);
    await database.addProject();
    for (const { events } of [heard, looked])
      await eventually(() => events.some(({ event }) => event === 'project'), 'a change was not heard of');
    await hearing.feed.close();
    await looking.feed.close();
    await outcomes.close();
    expect(heard.events.at(-1)).toMatchObject({ event: 'end', data: '{"reason":"closing"}' });
  });

  test('looks often when somebody begins to read: a change right after another one is not said', async () => {
    const unsaid = { hears: true, onChange: () => {} };
    const { feed } = counted(unsaid, { staysAwakeMs: NEVER_MS });
    const { stream, events } = reader(['project']);
    await feed.join(stream, null);
    await database.addProject();
    await eventually(() => events.some(({ event }) => event === 'project'), 'it sleeps');
    await feed.close();
  });

  test('who resumes hears what came meanwhile, and every sled, whose lease may have lapsed', async () => {
    const { feed } = counted(deaf, { deafMs: 1 });
    const project = await database.addProject();
    const id = await database.addInstance(project);
    const sledId = await database.addSled();
    const first = reader();
    await feed.join(first.stream, null);
    feed.leave(first.stream);
    const cursor = first.lastId();
    await database.db.execute(sql`UPDATE instance SET description = 'meanwhile' WHERE id = ${id}`);
    const second = reader();
    await feed.join(second.stream, cursor);
    const got = second.events.map(({ event, data }) => [event, JSON.parse(data).id]);
    expect(got).toEqual([
      ['instance', id],
      ['sled', sledId],
    ]);
    const third = reader();
    await feed.join(third.stream, 'what is none');
    expect(JSON.parse(third.events[0]?.data ?? '')).toMatchObject({ reason: 'other_history' });
    await feed.close();
  });
});
