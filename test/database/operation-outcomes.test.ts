/** How the outcomes of operations are heard as they are committed, and that a listener knows whether it hears. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { OperationOutcomes } from '../../db/operation-outcomes.ts';
import { recordOperation } from '../../db/transactions/record-operation.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { CuttableProxy } from '../support/cuttable-proxy.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';

const LISTENER = 'a-listener';

let database: TestDatabase;
let instanceId: string;
let listeners: OperationOutcomes[] = [];
beforeAll(async () => {
  database = await startTestDatabase();
  instanceId = await database.addInstance(await database.addProject());
});
afterEach(async () => {
  await Promise.all(listeners.map((listener) => listener.close()));
  listeners = [];
});
afterAll(() => database?.stop());

/** A listener that proves every 100 ms that it hears. */
function listen(url = database.url): OperationOutcomes {
  const log = createLog('test', 'silent');
  const listener = new OperationOutcomes(
    { url, db: database.db, log, applicationName: LISTENER },
    { proveEveryMs: 100 },
  );
  listener.start();
  listeners.push(listener);
  return listener;
}

async function hearing(): Promise<OperationOutcomes> {
  const listener = listen();
  await waitUntil(() => listener.hears, 'it never heard');
  return listener;
}

async function begun(): Promise<string> {
  const id = randomUUID();
  await recordOperation(database.db, { id, kind: 'start', instanceId, workflowId: 'w' });
  return id;
}

const end = (id: string, succeeded: boolean) =>
  database.db.execute(sql`UPDATE operation SET succeeded = ${succeeded}, time_ended = now(),
    error = CASE WHEN NOT ${succeeded} THEN '{"status": 409}'::jsonb END WHERE id = ${id}`);

/** What is heard within a while; `null`: nothing. */
async function heardIn(ms: number, listener: OperationOutcomes, id: string): Promise<boolean | null> {
  return listener.heard(id, AbortSignal.timeout(ms)).catch(() => null);
}

const connections = async () =>
  (await database.db.execute(sql`SELECT pid FROM pg_stat_activity WHERE application_name = ${LISTENER}`)).rows.length;

describe('an outcome', () => {
  test('is heard by all who wait for it, a success and a failure', async () => {
    const listener = await hearing();
    const [one, other] = [await begun(), await begun()];
    const waiting = [one, one, other].map((id) => heardIn(10_000, listener, id));
    await end(one, true);
    await end(other, false);
    expect(await Promise.all(waiting)).toEqual([true, true, false]);
  });

  test('is heard of an operation that is on record only with its end', async () => {
    const listener = await hearing();
    const id = randomUUID();
    await database.db.execute(sql`INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, time_ended)
      VALUES (${id}, 'start', ${instanceId}, 'w', true, now())`);
    expect(await heardIn(10_000, listener, id)).toBe(true);
  });

  test('that came before anybody knew the run is heard afterwards', async () => {
    const listener = await hearing();
    const [early, last] = [await begun(), await begun()];
    await end(early, false);
    await end(last, true);
    expect(await heardIn(10_000, listener, last)).toBe(true);
    // No time is left for anything to arrive.
    expect(await listener.heard(early, AbortSignal.abort())).toBe(false);
  });

  test('is not heard before it is committed, nor when it is rolled back, nor of an operation that goes on', async () => {
    const listener = await hearing();
    const id = await begun();
    await database.db
      .transaction(async (transaction) => {
        await transaction.execute(sql`UPDATE operation SET succeeded = true, time_ended = now() WHERE id = ${id}`);
        expect(await heardIn(300, listener, id)).toBeNull();
        throw new Error('no');
      })
      .catch(() => {});
    await database.db.execute(sql`UPDATE operation SET time_started = now() WHERE id = ${id}`);
    expect(await heardIn(300, listener, id)).toBeNull();
  });
});

describe('a listener', () => {
  test('whose connection is ended listens again', async () => {
    const listener = await hearing();
    for (let round = 0; round < 3; round++) {
      const { rows } = await database.db.execute(
        sql`SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ${LISTENER}`,
      );
      expect(rows).toHaveLength(1);
      await waitUntil(() => !listener.hears, 'it never noticed');
      await waitUntil(() => listener.hears, 'it never heard again');
    }
    const id = await begun();
    const heard = heardIn(10_000, listener, id);
    await end(id, true);
    expect(await heard).toBe(true);
  });

  test('that is told nothing knows it, as behind a pooler that does not deliver', async () => {
    // What is said in one database of a server is not heard in another.
    await database.db.execute(sql`CREATE DATABASE elsewhere TEMPLATE template0`);
    const elsewhere = new URL(database.url);
    elsewhere.pathname = '/elsewhere';
    const listener = listen(elsewhere.href);
    await waitUntil(async () => (await connections()) === 1, 'it never connected');
    await waitUntil(async () => (await connections()) === 0, 'it kept a connection that is good for nothing');
    expect(listener.hears).toBe(false);
  });

  test('whose connection is cut without an end notices, and hears over the next one', async () => {
    const { host } = new URL(database.url);
    const proxy = await CuttableProxy.open('127.0.0.1', () => host);
    try {
      const through = new URL(database.url);
      through.host = proxy.address;
      const listener = listen(through.href);
      await waitUntil(() => listener.hears, 'it never heard');
      proxy.set('cut');
      await waitUntil(() => !listener.hears, 'it never noticed');
      proxy.set('pass');
      await waitUntil(() => listener.hears, 'it never heard again');
    } finally {
      await proxy.close();
    }
  });

  test('that is closed leaves no connection, and none where PostgreSQL is out of reach', async () => {
    const listener = await hearing();
    expect(await connections()).toBe(1);
    await listener.close();
    await waitUntil(async () => (await connections()) === 0, 'its connection stays open');
    expect(listener.hears).toBe(false);
    const nowhere = new URL(database.url);
    nowhere.port = '1';
    const deaf = listen(nowhere.href);
    await deaf.close();
    expect(deaf.hears).toBe(false);
  });
});
