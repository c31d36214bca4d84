/** Two workers and two APIs on one database and one Temporal, doing the same work at the same time. */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type RunningApi, startApi } from '../../api/server.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { plainTemporal } from '../../temporal/connection.ts';
import { type RunningWorker, startWorker } from '../../worker/worker.ts';
import { type Harness, startHarness } from '../support/harness.ts';

let harness: Harness;
let secondWorker: RunningWorker;
let secondApi: RunningApi;
let both: [MooringClient, MooringClient];
beforeAll(async () => {
  harness = await startHarness();
  const parts = {
    databaseUrl: harness.stack.databaseUrl,
    temporal: plainTemporal(harness.stack.temporalAddress),
  };
  // As the stack's own: a worker with a version would take all new workflows from one without, and nobody would go on with
  // them when it stops.
  const like = { alone: true, reconcileEveryMs: 1_000 };
  secondWorker = await startWorker({ ...parts, ...like, log: createLog('second', 'error') });
  secondApi = await startApi({
    ...parts,
    host: '127.0.0.1',
    port: 0,
    authentication: 'open',
    log: createLog('second', 'error'),
  });
  both = [harness.client, new MooringClient({ url: secondApi.url })];
});
afterAll(async () => {
  await secondApi?.stop();
  await secondWorker?.stop();
  await harness?.close();
});

async function vmmsOf(id: string): Promise<number> {
  const rows = await harness.database.db.execute(sql`SELECT count(*)::int AS n FROM vmm WHERE instance_id = ${id}`);
  return Number(rows.rows[0]?.n);
}

test('the same start, migration and stop through both APIs is one each', async () => {
  const ids = await Promise.all(Array.from({ length: 5 }, () => harness.create()));
  const starts = await Promise.all(ids.flatMap((id) => both.map((client) => client.startInstance(id))));
  expect(new Set(starts.map(({ operationId }) => operationId)).size).toBe(5);
  for (const id of ids) {
    await harness.shows(id, 'running');
    expect(await vmmsOf(id)).toBe(1);
  }
  const moves = await Promise.all(ids.map(async (id) => ({ id, to: (await harness.placed(id)).there.id })));
  await Promise.all(moves.flatMap(({ id, to }) => both.map((client) => client.migrateInstance(id, to))));
  for (const { id, to } of moves) {
    await harness.rests(id);
    const record = await harness.shows(id, 'running');
    expect(record.active?.sledId).toBe(to);
    expect(await vmmsOf(id)).toBe(2);
  }
  await Promise.all(ids.flatMap((id) => both.map((client) => client.stopInstance(id))));
  for (const id of ids) {
    await harness.shows(id, 'stopped');
    await harness.rests(id);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  }
});

test('every loop by hand through both at once, beside the schedules, over the same faults', async () => {
  const ids = await Promise.all(
    Array.from({ length: 4 }, () => harness.running({ auto_restart_policy: 'best_effort' })),
  );
  for (const id of ids) {
    const { active } = await harness.record(id);
    harness.sled(active?.sledId).agent.faults.lose(active?.id ?? '');
  }
  for (let round = 0; round < 3; round++) {
    for (const name of ['watcher', 'updater', 'auto-restart', 'reaper'] as const)
      await Promise.all(both.map((client) => client.runReconciler(name)));
  }
  for (const id of ids) {
    const record = await harness.shows(id, 'running');
    await harness.rests(id);
    expect(record.instance.lastStartReason).toBe('auto_restart');
    // The one that was lost, and one more.
    expect(await vmmsOf(id)).toBe(2);
    expect(await harness.holds(id)).toEqual({ reservations: ['active'], charge: true });
  }
  await Promise.all(ids.map((id) => harness.client.stopInstance(id)));
});

test('one drain, though both begin it; it goes on when the worker of one stops', async () => {
  const ids = await Promise.all(Array.from({ length: 6 }, () => harness.running()));
  const from = harness.sled((await harness.record(ids[0] ?? '')).active?.sledId);
  const [one, two] = await Promise.all(both.map((client) => client.drainSled(from.id, { parallel: 2 })));
  expect(one?.time_started).toBe(two?.time_started);
  await secondWorker.stop();
  expect((await harness.client.waitForDrain(from.id)).state).toBe('drained');
  for (const id of ids) expect((await harness.shows(id, 'running')).active?.sledId).not.toBe(from.id);
});

test('no guest ever ran twice at a time', () => {
  const entries = harness.stack.sleds
    .flatMap(({ agent }) => agent.faults.guestLog())
    .sort((a, b) => a.time.localeCompare(b.time) || b.event.localeCompare(a.event));
  const running = new Map<string, Set<string>>();
  for (const { instance_id, vmm_id, event } of entries) {
    const guests = running.get(instance_id) ?? new Set<string>();
    running.set(instance_id, guests);
    if (event === 'began') guests.add(vmm_id);
    else guests.delete(vmm_id);
    expect(guests.size, `guests of ${instance_id}`).toBeLessThan(2);
  }
});
