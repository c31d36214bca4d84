/** A sled with thirty guests dies: they come back on the others, critical ones first, a bounded number at a time. */
import { Client } from '@temporalio/client';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MAX_OPEN_RESTARTS } from '../../activities/auto-restart.ts';
import { marginMs } from '../../model/lease.ts';
import { RESTART_PRIORITIES } from '../../model/states.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { connectClient } from '../../temporal/connection.ts';
import { FencingWorld } from '../support/fencing-world.ts';

const LEASE_MS = 4_000;
const GUESTS = 30;
const RECONCILE_MS = 1_000;
/**
 * How much longer than their first starts, one machine and one run, the restarts may take, beside what passes by the clock:
 * lease and margin, a pass of each of the loops (the verdict, a pass of auto-restart for each batch). More means "stuck".
 */
const FACTOR = 3;
const BY_THE_CLOCK_MS =
  LEASE_MS + marginMs(LEASE_MS) + 2 * RECONCILE_MS + Math.ceil(GUESTS / MAX_OPEN_RESTARTS) * RECONCILE_MS;

let world: FencingWorld;
beforeAll(async () => {
  world = await FencingWorld.start({ sleds: 3, leaseMs: LEASE_MS, reconcileEveryMs: RECONCILE_MS });
});
afterAll(() => world?.stop());

test('thirty guests of a sled that dies are back within the stated time, spread, critical ones first', async () => {
  const [doomed, ...others] = world.sleds;
  if (doomed === undefined) throw new Error('there are no sleds');
  for (const sled of others) await world.client.setSledPolicy(sled.id, 'non_provisionable');
  const made: { id: string }[] = [];
  const firstBegan = monotonicMs();
  while (made.length < GUESTS) {
    const some = RESTART_PRIORITIES.map(async (priority) => ({
      id: await world.running({ restart_priority: priority }),
    }));
    made.push(...(await Promise.all(some)));
  }
  const firstTookMs = monotonicMs() - firstBegan;
  for (const sled of others) await world.client.setSledPolicy(sled.id, 'provisionable');
  const vmms = new Map(
    await Promise.all(made.map(async ({ id }) => [id, (await world.record(id)).active?.id ?? ''] as const)),
  );
  let most = 0;
  let watching = true;
  const watch = (async () => {
    while (watching) {
      const { rows } =
        await world.db.execute(sql`SELECT count(*)::int AS n FROM operation JOIN instance ON instance.id = operation.instance_id
        WHERE operation.kind = 'start' AND operation.time_ended IS NULL AND instance.last_start_reason = 'auto_restart'`);
      most = Math.max(most, Number(rows[0]?.n));
    }
  })();
  const died = monotonicMs();
  doomed.signal('SIGKILL');
  await Promise.all(made.map(({ id }) => world.runs(id, vmms.get(id))));
  const tookMs = monotonicMs() - died;
  watching = false;
  await watch;
  console.info(
    `${GUESTS} guests were back after ${(tookMs / 1000).toFixed(1)} s; at most ${most} starts were open at a time`,
  );
  expect(tookMs).toBeLessThan(BY_THE_CLOCK_MS + FACTOR * firstTookMs);
  expect(most).toBeLessThanOrEqual(MAX_OPEN_RESTARTS);

  const records = await Promise.all(made.map(({ id }) => world.record(id)));
  for (const { active } of records) expect(active?.sledId).not.toBe(doomed.id);
  for (const sled of others) {
    const here = records.filter(({ active }) => active?.sledId === sled.id).length;
    expect(here, `guests on ${sled.name}`).toBeGreaterThanOrEqual(GUESTS / 5);
  }
  // By when their last start was begun, whenever a worker came to it: the batches are in the order of priority.
  const { connection, close } = await connectClient(world.temporalSettings.connection);
  const { workflow } = new Client({ connection });
  const begun = await Promise.all(
    made.map(async ({ id }, index) => ({
      rank: index % RESTART_PRIORITIES.length,
      time: (await workflow.getHandle(workflowIds.start(id)).describe()).startTime.getTime(),
    })),
  );
  await close();
  const order = begun.sort((a, b) => a.time - b.time).map(({ rank }) => rank);
  const mean = (rank: number) => {
    const at = order.flatMap((one, index) => (one === rank ? [index] : []));
    return at.reduce((sum, index) => sum + index, 0) / at.length;
  };
  const { rows } = await world.db.execute(sql`SELECT 1 FROM instance WHERE time_last_auto_restarted IS NOT NULL`);
  expect(rows).toHaveLength(GUESTS);
  expect(mean(0)).toBeLessThan(mean(1));
  expect(mean(1)).toBeLessThan(mean(2));
  world.witness();
  doomed.start();
  await world.inService(doomed);
  await world.examined();
});
