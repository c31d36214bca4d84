/** A sled with thirty guests dies: they come back on the others, critical ones first, a bounded number at a time. */
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MAX_OPEN_RESTARTS } from '../../activities/auto-restart.ts';
import { marginMs } from '../../model/lease.ts';
import { RESTART_PRIORITIES } from '../../model/states.ts';
import { monotonicMs } from '../../sled-agent/lease-file.ts';
import { FencingWorld } from '../support/fencing-world.ts';

const LEASE_MS = 4_000;
const GUESTS = 30;
const RECONCILE_MS = 1_000;
/**
 * What is stated: lease and margin, a pass of each of the loops (the verdict, a pass of auto-restart for each batch), and
 * what the starts take, which on an idle machine is well below a second each (docs/performance.md). Ten times that here:
 * a time-out means "stuck".
 */
const STATED_MS =
  LEASE_MS +
  marginMs(LEASE_MS) +
  2 * RECONCILE_MS +
  Math.ceil(GUESTS / MAX_OPEN_RESTARTS) * RECONCILE_MS +
  GUESTS * 1_000;

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
  while (made.length < GUESTS) {
    const some = RESTART_PRIORITIES.map(async (priority) => ({
      id: await world.running({ restart_priority: priority }),
    }));
    made.push(...(await Promise.all(some)));
  }
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
  expect(tookMs).toBeLessThan(STATED_MS);
  expect(most).toBeLessThanOrEqual(MAX_OPEN_RESTARTS);

  const records = await Promise.all(made.map(({ id }) => world.record(id)));
  for (const { active } of records) expect(active?.sledId).not.toBe(doomed.id);
  for (const sled of others) {
    const here = records.filter(({ active }) => active?.sledId === sled.id).length;
    expect(here, `guests on ${sled.name}`).toBeGreaterThanOrEqual(GUESTS / 5);
  }
  // By when their last start began: the batches are in the order of priority.
  const { rows } =
    await world.db.execute(sql`SELECT instance.restart_priority AS priority, instance.time_last_auto_restarted AS time
    FROM instance WHERE time_last_auto_restarted IS NOT NULL ORDER BY time_last_auto_restarted`);
  const order = rows.map((row) => RESTART_PRIORITIES.indexOf(row.priority as 'normal'));
  const mean = (rank: number) => {
    const at = order.flatMap((one, index) => (one === rank ? [index] : []));
    return at.reduce((sum, index) => sum + index, 0) / at.length;
  };
  expect(order).toHaveLength(GUESTS);
  expect(mean(0)).toBeLessThan(mean(1));
  expect(mean(1)).toBeLessThan(mean(2));
  world.witness();
  doomed.start();
  await world.inService(doomed);
  await world.examined();
});
