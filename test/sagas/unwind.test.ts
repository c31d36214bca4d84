/** Every step of start and migrate fails for good, while nothing works on the update saga's queue. */
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Fault } from '../../sled-agent/faults.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ updates: false, reconcileEveryMs: 0, registerTimeoutMs: 1_500 });
});
afterEach(async () => {
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.examined(false);
});
afterAll(() => harness?.close());

const refuse = (
  call: 'register' | 'state:running' | 'state:migration_target',
  status: number,
  error_code?: string,
): Fault => ({
  call,
  act: { type: 'refuse', status, ...(error_code === undefined ? {} : { error_code }) },
});
const FAULTS = {
  'is refused': (call: Parameters<typeof refuse>[0]) => refuse(call, 409),
  'meets a VMM that the sled does not know': (call: Parameters<typeof refuse>[0]) =>
    refuse(call, 404, 'NO_SUCH_INSTANCE'),
};

describe('a start that fails', () => {
  const cases: [string, Fault][] = [
    ['register is refused', refuse('register', 409)],
    ['register is never answered', { call: 'register', act: { type: 'drop_before' } }],
    ['register takes effect, and is never answered', { call: 'register', act: { type: 'drop_after' } }],
    ...Object.entries(FAULTS).map(([what, make]): [string, Fault] => [`running ${what}`, make('state:running')]),
  ];
  test.each(cases)('%s: Stopped when the call returns, nothing held, and the next start succeeds', async (_, fault) => {
    const id = await harness.create();
    const before = await harness.record(id);
    harness.everywhere(({ agent }) => agent.faults.plant(fault));

    const error = await refused(harness.client.startInstance(id));
    expect(error.status).toBe(503);
    expect(error.message).toMatch(/sled "sled-\d"/);

    const after = await harness.record(id);
    expect(after.externalState).toBe('stopped');
    expect(after.active?.state).toBe('saga_unwound');
    expect(after.instance.state).toBe('vmm');
    // The claim raised it by one; the unwind must not.
    expect(after.instance.stateGeneration).toBe(before.instance.stateGeneration + 1);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });

    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.client.startInstance(id);
    const again = await harness.shows(id, 'running');
    expect(again.instance.activeVmmId).not.toBe(after.instance.activeVmmId);
    expect(again.instance.stateGeneration).toBe(after.instance.stateGeneration + 1);
    expect(await harness.holds(id)).toEqual({ reservations: ['active'], charge: true });
  });

  test('the claim finds no room: 507, and nothing was written', async () => {
    const id = await harness.create(undefined, { ncpus: 200 });
    const error = await refused(harness.client.startInstance(id));
    expect(error.status).toBe(507);
    const after = await harness.record(id);
    expect(after.externalState).toBe('stopped');
    expect(after.instance).toMatchObject({
      state: 'no_vmm',
      activeVmmId: null,
      stateGeneration: 1,
      intendedState: 'stopped',
    });
    await harness.client.updateInstance(id, { ncpus: 2 });
    await harness.client.startInstance(id);
  });

  test('the claim finds no quota: 507; with a higher quota the next start succeeds', async () => {
    await harness.client.createProject({ name: 'small', description: '' });
    await harness.client.setQuota('small', { cpus: 1, memory: null });
    const { id } = await harness.client.createInstance(
      { name: 'big', hostname: 'big', description: '', ncpus: 2, memory: 1024 ** 3, start: false },
      { project: 'small' },
    );
    expect((await refused(harness.client.startInstance(id))).status).toBe(507);
    expect((await harness.record(id)).externalState).toBe('stopped');
    await harness.client.setQuota('small', { cpus: 2, memory: null });
    await harness.client.startInstance(id);
    expect((await harness.client.getQuota('small')).cpus_in_use).toBe(2);
  });

  test('a sled that was silent: its reservation is tombstoned, and only that', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => {
      agent.faults.plant({ call: 'register', act: { type: 'drop_after' } });
      agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
    });
    expect((await refused(harness.client.startInstance(id))).status).toBe(503);
    expect((await harness.record(id)).externalState).toBe('stopped');
    expect(await harness.holds(id)).toEqual({ reservations: ['tombstoned'], charge: false });
    harness.everywhere(({ agent }) => agent.faults.clear());
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
  });

  test('two starts at once are one operation: one VMM, one outcome', async () => {
    // Its sled is busy until both calls are known to be under way: a start alone may be over before the other call comes.
    const busy = { call: 'state:running', act: { type: 'refuse', status: 503 } } as const;
    const startTwice = async (id: string) => {
      harness.everywhere(({ agent }) => agent.faults.plant(busy));
      const both = await Promise.all([1, 2].map(() => harness.client.startInstance(id, { waitSeconds: 0 })));
      const [operationId, ...others] = new Set(both.map((one) => one.operationId));
      expect(operationId).not.toBeNull();
      expect(others).toEqual([]);
      return () => Promise.all([1, 2].map(() => harness.client.waitForOperation(operationId ?? '')));
    };
    const id = await harness.create();
    const outcomes = await startTwice(id);
    harness.everywhere(({ agent }) => agent.faults.clear());
    for (const operation of await outcomes()) expect(operation).toMatchObject({ outcome: 'succeeded' });
    const vmms = await harness.database.db.execute(
      sql`SELECT count(*)::int AS count FROM vmm WHERE instance_id = ${id}`,
    );
    expect(vmms.rows[0]?.count).toBe(1);

    const other = await harness.create();
    const failures = await startTwice(other);
    // A third one waits in its call.
    const waiting = refused(harness.client.startInstance(other));
    harness.everywhere(({ agent }) => {
      agent.faults.clear();
      agent.faults.plant(refuse('state:running', 422));
    });
    const [first, second] = await failures();
    expect(first).toMatchObject({ outcome: 'failed' });
    expect(second?.error).toEqual(first?.error);
    expect((await waiting).status).toBe(503);
  });
});

describe('a migration that fails', () => {
  const cases: [string, Fault][] = [
    ['register is refused', refuse('register', 409)],
    ['register is never answered', { call: 'register', act: { type: 'drop_before' } }],
    ['migration_target is refused', refuse('state:migration_target', 409)],
    [
      'migration_target meets a VMM that the sled does not know',
      refuse('state:migration_target', 404, 'NO_SUCH_INSTANCE'),
    ],
  ];
  test.each(cases)('%s: still Running where it was, and the next migration succeeds', async (_, fault) => {
    const id = await harness.running();
    const before = await harness.record(id);
    const { here, there } = await harness.placed(id);
    there.agent.faults.plant(fault);

    expect((await refused(harness.client.migrateInstance(id, there.id))).status).toBe(503);
    const after = await harness.record(id);
    expect(after.externalState).toBe('running');
    expect(after.instance.activeVmmId).toBe(before.instance.activeVmmId);
    expect(after.target?.state).toBe('saga_unwound');
    expect(after.migration?.targetState).toBe('failed');
    expect(after.instance.stateGeneration).toBe(before.instance.stateGeneration + 1);
    expect(await harness.holds(id)).toEqual({ reservations: ['active'], charge: true });

    there.agent.faults.clear();
    await harness.client.migrateInstance(id, there.id);
    const again = await harness.record(id);
    expect(again.target?.sledId).toBe(there.id);
    expect(again.active?.sledId).toBe(here.id);
  });

  test('an unknown, current, full or closed destination is refused before anything is written', async () => {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    const before = await harness.record(id);
    expect((await refused(harness.client.migrateInstance(id, here.id))).status).toBe(400);
    expect((await refused(harness.client.migrateInstance(id, '00000000-0000-4000-8000-00000000dead'))).status).toBe(
      404,
    );
    await harness.client.setSledPolicy(there.id, 'non_provisionable');
    expect((await refused(harness.client.migrateInstance(id, there.id))).status).toBe(409);
    await harness.client.setSledPolicy(there.id, 'provisionable');
    expect(await harness.record(id)).toEqual(before);
  });
});

test('once updates run and every sled has answered, nothing of all this is left', async () => {
  await harness.stack.worker.setUpdates(true);
  await harness.reconcile();
  await harness.examined(true);
});
