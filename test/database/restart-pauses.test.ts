/**
 * An instance whose automatic starts fail is not tried again at each pass: what its last starts came to, whatever that was,
 * decides how long it is left alone. Whole passes on a real PostgreSQL, whose operations are all that remembers it.
 */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { restartInstances } from '../../activities/auto-restart.ts';
import { findRestartCandidates } from '../../db/queries/find-restart-candidates.ts';
import { restartPauseMs } from '../../model/auto-restart.ts';
import { REFUSAL_STATUS } from '../../model/refusal.ts';
import type { RestartPriority } from '../../model/states.ts';
import { startTestDatabase, type TestDatabase } from '../support/placement-database.ts';

let database: TestDatabase;
let projectId: string;
beforeAll(async () => {
  database = await startTestDatabase();
});
beforeEach(async () => {
  await database.empty();
  projectId = await database.project();
  await database.sled();
});
afterAll(() => database?.close());

async function failed(priority: RestartPriority = 'normal'): Promise<string> {
  const id = await database.instance(projectId);
  await database.db.execute(sql`UPDATE instance SET state = 'failed', intended_state = 'running',
    restart_priority = ${priority}::restart_priority, state_generation = state_generation + 1 WHERE id = ${id}`);
  return id;
}

/** A start of an instance that ended so long ago, in milliseconds; `null`: it succeeded. */
async function ended(instanceId: string, status: number | null, agoMs: number): Promise<void> {
  const error = status === null ? null : JSON.stringify({ status, error_code: 'X', message: 'x' });
  await database.db.execute(sql`
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, error, time_started, time_ended)
    SELECT ${randomUUID()}, 'start', ${instanceId}, 'w', ${status === null}, ${error}::jsonb, ended, ended
    FROM (SELECT now() - ${agoMs} * interval '1 millisecond' AS ended) moment`);
}

async function pass(): Promise<{ started: readonly string[]; coolingDown: readonly string[] }> {
  return restartInstances(database.db, { autoRestart: async () => true, isStarting: async () => false });
}

const STATUSES = [...new Set(Object.values(REFUSAL_STATUS))].filter((status) => status >= 400);

describe('the pause', () => {
  test('grows with each failure, whatever failed, and has an end', () => {
    for (const lastStatus of STATUSES) {
      const pauses = Array.from({ length: 40 }, (_, index) => restartPauseMs({ count: index + 1, lastStatus }));
      for (const [index, pause] of pauses.entries()) {
        const before = pauses[index - 1] ?? 0;
        expect(pause, `${lastStatus}: ${pauses}`).toBeGreaterThanOrEqual(before);
        expect(pause).toBeLessThanOrEqual(15 * 60_000);
        // What is tried again at once is only the first failure that another sled may mend.
        expect(pause === 0).toBe(index === 0 && lastStatus >= 500);
      }
      expect(pauses.at(-1)).toBe(15 * 60_000);
    }
  });

  test('is kept by every pass, and is over when it is over: whatever failed, how often and how long ago', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...STATUSES),
        fc.integer({ min: 1, max: 9 }),
        fc.boolean(),
        async (lastStatus, count, over) => {
          await database.db.execute(sql`TRUNCATE instance CASCADE`);
          const id = await failed();
          const pauseMs = restartPauseMs({ count, lastStatus });
          const lastAgoMs = over ? pauseMs + 1_000 : pauseMs / 2;
          for (let nth = 1; nth < count; nth++) await ended(id, 503, lastAgoMs + nth * 1_000);
          await ended(id, lastStatus, lastAgoMs);
          const eligible = over || pauseMs === 0;
          for (let again = 0; again < 2; again++)
            expect(await pass()).toMatchObject({ started: eligible ? [id] : [], coolingDown: eligible ? [] : [id] });
        },
      ),
      { numRuns: 40 },
    );
  });

  test('begins anew when a start has succeeded; a migration, or another instance, is not a start of this one', async () => {
    const [id, other] = [await failed(), await failed()];
    for (let nth = 1; nth <= 5; nth++) await ended(id, 409, 5_000 + nth * 1_000);
    expect(await pass()).toMatchObject({ started: [other], coolingDown: [id] });
    await database.db.execute(sql`
      INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, time_ended) VALUES (${randomUUID()}, 'migrate', ${id}, 'w', true, now())`);
    expect(await pass()).toMatchObject({ started: [other], coolingDown: [id] });
    await ended(id, null, 4_000);
    expect([...(await pass()).started].sort()).toEqual([id, other].sort());
    await ended(id, 503, 3_000);
    expect([...(await pass()).started].sort()).toEqual([id, other].sort());
    await ended(id, 503, 2_000);
    expect(await pass()).toMatchObject({ started: [other], coolingDown: [id] });
  });
});

test('those whose starts fail again and again hide none behind them, and keep their rank where there is room for all', async () => {
  const failing = [await failed('critical'), await failed('critical')];
  for (const id of failing) for (let nth = 1; nth <= 3; nth++) await ended(id, 409, nth * 3_600_000);
  const low = await failed('low');
  expect((await findRestartCandidates(database.db, 1)).map(({ instance }) => instance.id)).toEqual([low]);
  const { started } = await pass();
  expect([...started.slice(0, 2)].sort()).toEqual([...failing].sort());
  expect(started[2]).toBe(low);
});
