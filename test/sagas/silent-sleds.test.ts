/**
 * A start and the sleds that answer: it succeeds if and only if one of them takes the instance, whichever others are silent, and
 * whatever is known of them before.
 */
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';

const REGISTER_MS = 6_000;

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ sleds: 3, reconcileEveryMs: 0, registerTimeoutMs: REGISTER_MS });
});
afterEach(async () => {
  harness.everywhere(wake);
  for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'provisionable');
  await harness.examined(false);
});
afterAll(() => harness?.close());

/** Nothing is known of who answers, as if every silent sled had died this moment. */
const forget = () =>
  harness.database.db.execute(sql`UPDATE sled SET silent_since = NULL, last_answered_at = now(), agent_trouble = '{}'`);

const silentSleds = async () => {
  const { rows } = await harness.database.db.execute(
    sql`SELECT name FROM sled WHERE silent_since IS NOT NULL ORDER BY name`,
  );
  return rows.map(({ name }) => String(name));
};

const SLED_STATES = ['answers', 'silent', 'closed'] as const;
type SledState = (typeof SLED_STATES)[number];
/** Every kind of fleet of three sleds, in which each may answer, be silent, or take no VMMs. */
const FLEETS = SLED_STATES.flatMap((a, first) =>
  SLED_STATES.slice(first).flatMap((b, second) =>
    SLED_STATES.slice(first + second).map((c): [SledState, SledState, SledState] => [a, b, c]),
  ),
);

describe('a start succeeds if and only if a sled answers that takes the instance', () => {
  test.each(FLEETS)('%s, %s, %s', async (...fleet) => {
    const id = await harness.create();
    const named = new Map(harness.stack.sleds.map((sled, index) => [sled.id, fleet[index]]));
    for (const [index, sled] of harness.stack.sleds.entries()) {
      if (fleet[index] === 'silent') silence(sled);
      if (fleet[index] === 'closed') await harness.client.setSledPolicy(sled.id, 'non_provisionable');
    }
    await forget();
    if (fleet.includes('answers')) {
      await harness.client.startInstance(id);
      const { active } = await harness.shows(id, 'running');
      expect(named.get(active?.sledId ?? '')).toBe('answers');
      expect((await harness.holds(id)).reservations.filter((kind) => kind !== 'tombstoned')).toEqual(['active']);
      const { rows } = await harness.database.db.execute(
        sql`SELECT succeeded, vmm_id FROM operation WHERE instance_id = ${id}`,
      );
      expect(rows).toEqual([{ succeeded: true, vmm_id: active?.id }]);
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopped');
      return;
    }
    const error = await refused(harness.client.startInstance(id));
    expect(error.status).toBe(fleet.includes('silent') ? 503 : 507);
    if (fleet.includes('silent')) expect(error.message).toMatch(/sled "sled-\d"/);
    expect((await harness.record(id)).externalState).toBe('stopped');
    expect(await harness.holds(id)).toMatchObject({ charge: false });
    harness.everywhere(wake);
    for (const { id: sledId } of harness.stack.sleds) await harness.client.setSledPolicy(sledId, 'provisionable');
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });

  test('a sled that takes the call and never answers is as silent as one that cuts it off', async () => {
    const id = await harness.create();
    const [first, ...others] = harness.stack.sleds;
    for (const { id: sledId } of others) await harness.client.setSledPolicy(sledId, 'non_provisionable');
    first?.agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 600_000 } });
    const started = harness.client.startInstance(id);
    for (const { id: sledId } of others) await harness.client.setSledPolicy(sledId, 'provisionable');
    await started;
    const { active } = await harness.shows(id, 'running');
    expect(others.map((sled) => sled.id)).toContain(active?.sledId);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });
});

test('who asks for stop while the start looks for another sled gets Stopped, and the start’s caller a conflict', async () => {
  const id = await harness.create();
  for (const sled of harness.stack.sleds) sled.agent.faults.plant({ call: 'register', act: { type: 'drop_before' } });
  const starting = refused(harness.client.startInstance(id));
  await harness.shows(id, 'starting');
  await harness.client.stopInstance(id);
  expect((await starting).status).toBe(409);
  const after = await harness.record(id);
  expect([after.externalState, after.instance.intendedState]).toEqual(['stopped', 'stopped']);
});

test('silence is remembered from a call, a silent sled is placed on last, and the watcher takes it back', async () => {
  const [dead, ...alive] = harness.stack.sleds;
  if (dead === undefined) throw new Error('there is no sled');
  silence(dead);
  await forget();
  await harness.reconcile();
  expect(await silentSleds()).toEqual([dead.name]);
  const shown = await harness.client.getSled(dead.id);
  expect(shown.silent_since).toMatch(/^\d{4}-/);
  expect(shown.agent).toMatchObject({ trouble: [] });
  for (let start = 0; start < 4; start++) {
    const id = await harness.create();
    await harness.client.startInstance(id);
    const { active } = await harness.shows(id, 'running');
    expect(alive.map((sled) => sled.id)).toContain(active?.sledId);
    const { rows } = await harness.database.db.execute(sql`SELECT 1 FROM vmm WHERE instance_id = ${id}`);
    expect(rows).toHaveLength(1);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  }
  wake(dead);
  await harness.reconcile();
  expect(await silentSleds()).toEqual([]);
  expect(await harness.client.getSled(dead.id)).toMatchObject({ silent_since: null });
});

test('a sled that answers 503 is busy, not silent', async () => {
  const [busy] = harness.stack.sleds;
  await forget();
  busy?.agent.faults.plant({ call: 'list', act: { type: 'refuse', status: 503 } });
  await harness.reconcile();
  expect(await silentSleds()).toEqual([]);
});

test('once every sled has answered, nothing of all this is left', async () => {
  await harness.reconcile();
  await harness.examined(true);
});
