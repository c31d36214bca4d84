import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readInstance } from '../../db/queries/read-instance.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { startTestDatabase, type TestDatabase } from '../support/placement-database.ts';
import { unwindError } from '../support/saga-steps.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.close());

test('a guest left its source, and its migration was then unwound: the instance can be started before any update, and the update leaves the new VMM alone', async () => {
  const project = await database.project();
  const sleds = [await database.sled(), await database.sled()];
  const id = await database.instance(project);
  const source = await database.start(id);
  await database.runs(id);
  const destination = sleds.find((sled) => sled !== source.sledId) ?? '';
  const claimed = await database.migrate(id, destination);
  if (claimed.outcome !== 'claimed') throw new Error(claimed.outcome);
  const { vmmId: target, migrationId } = claimed.claim;

  // The source says that its guest has left; the instance follows it.
  const time_updated = new Date().toISOString();
  await applyReport(database.db, source.vmmId, {
    vmm_state: { state: 'stopping', gen: 10, time_updated },
    migration_out: { migration_id: migrationId, state: 'completed', gen: 10, time_updated },
  });
  expect((await commitUpdate(database.db, id))?.rounds[0]?.case).toBe('left');
  // The destination says that it knows no such VMM.
  const attempt = {
    kind: 'migrate' as const,
    instanceId: id,
    vmmId: target,
    operationId: String(
      (await database.db.execute(sql`SELECT id FROM operation WHERE vmm_id = ${target}`)).rows[0]?.id,
    ),
    workflowId: `instance-migrate/${id}`,
  };
  await beginUnwind(database.db, { ...attempt, spareRunning: true });
  await finishUnwind(database.db, {
    ...attempt,
    confirmed: true,
    neverCommanded: false,
    error: unwindError('the destination lost it'),
  });
  const before = await readInstance(database.db, id);
  expect([before?.instance.activeVmmId, before?.instance.targetVmmId]).toEqual([target, target]);
  expect(before?.externalState).toBe('stopped');
  expect(await database.broken()).toEqual([]);

  const { vmmId } = await database.start(id);
  expect((await readInstance(database.db, id))?.externalState).toBe('starting');
  await commitUpdate(database.db, id);
  const after = await readInstance(database.db, id);
  expect(after?.instance).toMatchObject({ state: 'vmm', activeVmmId: vmmId, targetVmmId: null, migrationId: null });
  expect(after?.externalState).toBe('starting');
  const left = await database.db.execute(sql`SELECT id FROM vmm WHERE id = ${target} AND time_deleted IS NULL`);
  expect(left.rows).toEqual([]);
  expect(await database.broken()).toEqual([]);
});
