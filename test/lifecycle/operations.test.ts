/** The corners of the operations: what a user may ask for at an awkward moment, and what must come of it. */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type OperationRequest, Operations } from '../../api/operations.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { RunLister } from '../../temporal/run-lister.ts';
import type { InstanceCreated } from '../../wire/operator-api/instances.ts';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({
    ...{ sleds: 4, transitionMs: 100, reconcileEveryMs: 3_000, networkPollMs: 0 },
    // What a server gives by default; the development server gives more.
    temporalDynamicConfig: { 'frontend.namespaceRPS.visibility': 10 },
  });
});
afterEach(() => harness.everywhere(wake));
afterAll(() => harness?.close());

async function endsStopped(id: string): Promise<void> {
  await harness.shows(id, 'stopped');
  await harness.rests(id);
  expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  for (const { agent } of harness.stack.sleds) {
    const guests = new Set<string>();
    for (const entry of agent.faults.guestLog()) {
      if (entry.instance_id !== id) continue;
      if (entry.event === 'began') guests.add(entry.vmm_id);
      else guests.delete(entry.vmm_id);
    }
    expect(guests.size, 'guests left running').toBe(0);
  }
}

describe('create', () => {
  test('a first start that fails leaves a Stopped instance, and the creation succeeds', async () => {
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
    const response = await fetch(`${harness.stack.apiUrl}/v1/instances?project=default`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'first', hostname: 'first', description: '', ncpus: 1, memory: 2 ** 30 }),
    });
    expect(response.status).toBe(201);
    const made = (await response.json()) as { id: string; run_state: string };
    expect(made.run_state).toBe('stopped');
    harness.everywhere(wake);
    await harness.client.startInstance(made.id);
    await harness.shows(made.id, 'running');
  });

  test('one that finds no room, likewise', async () => {
    const made = await harness.client.createInstance(
      { name: 'huge', hostname: 'huge', description: '', ncpus: 200, memory: 2 ** 30 },
      { project: 'default' },
    );
    expect(made.run_state).toBe('stopped');
    expect(await harness.holds(made.id)).toEqual({ reservations: [], charge: false });
  });

  test('says why its first start failed, whatever the reason: in the answer, by its operation, and in the history', async () => {
    const { client, stack } = harness;
    await client.createProject({ name: 'narrow', description: '' });
    await client.setQuota('narrow', { cpus: 1, memory: null });
    await client.createAffinityGroup(
      'anti_affinity',
      { name: 'apart', description: '', policy: 'fail', failure_domain: 'sled' },
      { project: 'default' },
    );
    for (let member = 0; member < stack.sleds.length; member++)
      await client.startInstance(
        await harness.create(`apart-${member}`, { ncpus: 1, anti_affinity_groups: ['apart'] }),
      );
    const size = { hostname: 'x', description: '', ncpus: 1, memory: 2 ** 30, auto_restart_policy: 'never' as const };
    const refuse = (status: number) => () =>
      harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status } }));
    for (const { why, project = 'default', values = {}, plant = () => {}, status, message } of [
      { why: 'refused-409', plant: refuse(409), status: 503, message: /the start failed and was undone: sled "sled-/ },
      { why: 'refused-400', plant: refuse(400), status: 503, message: /the start failed and was undone: sled "sled-/ },
      {
        why: 'no-room',
        values: { ncpus: 200 },
        status: 507,
        message: /no sled has room/,
      },
      { why: 'no-memory', values: { memory: 2 ** 40 }, status: 507, message: /no sled has room/ },
      { why: 'over-quota', project: 'narrow', values: { ncpus: 2 }, status: 507, message: /quota/ },
      { why: 'no-place-apart', values: { anti_affinity_groups: ['apart'] }, status: 507, message: /apart/ },
    ]) {
      plant();
      const response = await fetch(`${stack.apiUrl}/v1/instances?project=${project}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...size, name: why, ...values }),
      });
      harness.everywhere(wake);
      const body = (await response.json()) as InstanceCreated;
      expect([why, response.status, body.run_state, body.start_error]).toEqual([
        why,
        201,
        'stopped',
        { status, error_code: expect.any(String), message: expect.stringMatching(message) },
      ]);
      const location = response.headers.get('location');
      expect([why, location]).toEqual([why, `/v1/operations/${body.start_operation_id}`]);
      const operation = await client.getOperation(body.start_operation_id ?? '');
      expect(operation).toMatchObject({
        ...{ kind: 'start', instance_id: body.id, state: 'done', outcome: 'failed' },
        error: { status, error_code: body.start_error?.error_code },
      });
      // Whoever is quicker tells it: the operation's row, or its workflow, which says "refused" before it.
      expect(body.start_error?.message).toContain(operation.error?.message);
      const told = (await client.getInstanceHistory(body.id)).items.map((item) => item.text);
      expect(told).toContain(`start failed: ${operation.error?.message}`);
    }
  });

  test('whose start succeeds, goes on or was not asked for says so, too', async () => {
    const { client } = harness;
    const values = { hostname: 'x', description: '', ncpus: 1, memory: 2 ** 30, auto_restart_policy: 'never' as const };
    const inProject = { project: 'default' };
    const started = await client.createInstance({ ...values, name: 'told-started' }, inProject);
    expect([started.start_error, started.start_operation_id]).toEqual([null, expect.any(String)]);
    const left = await client.createInstance({ ...values, name: 'told-left', start: false }, inProject);
    expect([left.start_error, left.start_operation_id]).toEqual([null, null]);
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
    const open = await client.createInstance({ ...values, name: 'told-open' }, { ...inProject, waitSeconds: 0 });
    expect([open.start_error, open.start_operation_id]).toEqual([null, expect.any(String)]);
    harness.everywhere(wake);
    expect((await client.waitForOperation(open.start_operation_id ?? '')).outcome).toBe('succeeded');
  });
});

describe('stop while migrating', () => {
  test('the migration goes on and arrives: it is stopped there', async () => {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    // The source can't be reached, so that the migration wins; the destination can.
    here.agent.faults.plant({ call: 'state:stopped', act: { type: 'refuse', status: 503 } });
    await harness.client.migrateInstance(id, there.id);
    await harness.client.stopInstance(id);
    await endsStopped(id);
    expect((await harness.record(id)).instance.intendedState).toBe('stopped');
  });

  test('the migration fails: it is stopped where it stayed', async () => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    there.agent.faults.plant({ migration: { side: 'target', point: 'middle' } });
    // The destination can't be reached.
    there.agent.faults.plant({ call: 'state:stopped', act: { type: 'refuse', status: 503 } });
    await harness.client.migrateInstance(id, there.id);
    await harness.client.stopInstance(id);
    await endsStopped(id);
  });

  test('the stop reaches only the destination at first: it is sent again until both have taken it', async () => {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'delay', ms: 1_000 }, times: 1 });
    here.agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' }, times: 3 });
    const migration = harness.client.migrateInstance(id, there.id).catch(() => {});
    await harness.shows(id, 'migrating');
    await harness.client.stopInstance(id);
    await endsStopped(id);
    await migration;
  });

  test('a destination that may be migrating in is not torn down for it', async () => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    // It takes effect, and the answers are lost: the saga does not know.
    there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'drop_after' }, times: 2 });
    const migration = harness.client.migrateInstance(id, there.id).then(
      () => null,
      (error: unknown) => error,
    );
    await waitUntil(async () => (await harness.record(id)).target?.commandedAt != null, 'it was never commanded');
    const target = (await harness.record(id)).target?.id;
    await harness.client.stopInstance(id);
    await endsStopped(id);
    await migration;
    const ended = there.agent.faults
      .guestLog()
      .filter(({ vmm_id, reason }) => vmm_id === target && reason === 'killed');
    expect(ended).toEqual([]);
  });
});

describe('stop while starting', () => {
  test('unwinds the start: Stopped, and its caller gets 409', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 1_000 } }));
    const start = refused(harness.client.startInstance(id));
    await harness.shows(id, 'starting');
    await harness.client.stopInstance(id);
    expect((await start).status).toBe(409);
    await endsStopped(id);
  });

  test('the last intent wins: stop, then start again before a sled was commanded', async () => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    here.agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' } });
    await harness.client.stopInstance(id);
    await harness.client.startInstance(id);
    harness.everywhere(wake);
    expect((await harness.record(id)).instance.intendedState).toBe('running');
    expect((await harness.shows(id, 'running')).externalState).toBe('running');
  });
});

test('delete over a leftover: 404 and a free name at once; only the update clears the id', async () => {
  const id = await harness.create('leftover');
  harness.everywhere(({ agent }) =>
    agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
  );
  await harness.stack.worker.setUpdates(false);
  await refused(harness.client.startInstance(id));
  const before = await harness.record(id);
  await harness.client.deleteInstance(id);
  expect((await refused(harness.client.getInstance(id))).status).toBe(404);
  expect((await refused(harness.client.startInstance(id))).status).toBe(404);
  await harness.create('leftover');
  const after = await harness.record(id);
  expect(after.instance).toMatchObject({
    state: 'vmm',
    activeVmmId: before.instance.activeVmmId,
    stateGeneration: before.instance.stateGeneration,
  });
  await harness.stack.worker.setUpdates(true);
  await waitUntil(async () => (await harness.record(id)).instance.state === 'destroyed', 'it never ended');
  await harness.rests(id);
});

test('expunge: what ran there is Failed, and a migration out of it is decided by its destination', async () => {
  const stays = await harness.running();
  const { here } = await harness.placed(stays);
  const others = harness.stack.sleds.filter(({ id }) => id !== here.id);
  for (const { id } of others) await harness.client.setSledPolicy(id, 'non_provisionable');
  const leaves = await harness.running();
  for (const { id } of others) await harness.client.setSledPolicy(id, 'provisionable');
  const there = harness.sled(others[0]?.id);
  there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'delay', ms: 1_000 }, times: 1 });
  const migration = harness.client.migrateInstance(leaves, there.id);
  await harness.shows(leaves, 'migrating');
  silence(here);
  await harness.client.expungeSled(here.id, { sled_powered_off: true });
  await harness.shows(stays, 'failed');
  expect(await harness.holds(stays)).toEqual({ reservations: [], charge: false });
  await migration;
  expect((await harness.shows(leaves, 'running')).active?.sledId).toBe(there.id);
  await harness.rests(leaves);
  expect(await harness.holds(leaves)).toEqual({ reservations: ['active'], charge: true });
});

test('expunge: a migration towards it is over, and stays where it was', async () => {
  const inbound = await harness.running();
  const doomed = await harness.client.addSled({
    name: 'doomed',
    address: '127.0.0.1:9',
    threads: 64,
    memory: 2 ** 38,
  });
  const { here } = await harness.placed(inbound);
  // Told nothing: the destination is registered with for as long as that may take.
  const migration = refused(harness.client.migrateInstance(inbound, doomed.id));
  await harness.shows(inbound, 'migrating');
  await harness.client.expungeSled(doomed.id, { sled_powered_off: true });
  expect((await migration).status).toBe(503);
  const stayed = await harness.shows(inbound, 'running');
  expect(stayed.active?.sledId).toBe(here.id);
  await harness.rests(inbound);
  expect(await harness.holds(inbound)).toEqual({ reservations: ['active'], charge: true });
});

test('an unwind that waits for a silent sled ends when the sled is expunged', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) => {
    agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 }, times: 1 });
    agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
  });
  const start = refused(harness.client.startInstance(id));
  await waitUntil(async () => (await harness.record(id)).active?.unwindingSince != null, 'it never unwound');
  const host = harness.sled((await harness.record(id)).active?.sledId);
  silence(host);
  expect((await harness.record(id)).externalState).toBe('starting');
  await harness.client.expungeSled(host.id, { sled_powered_off: true });
  await start;
  await harness.shows(id, 'stopped');
  expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
});

test('three hundred histories that are asked for at once are whole, where a namespace has ten lists a second', async () => {
  const id = await harness.create();
  // Another API's.
  const others = new RunLister(harness.temporal);
  const times = Array.from({ length: 300 }, (_, index) => index);
  const [histories, runs] = await Promise.all([
    Promise.all(times.map(() => harness.client.getInstanceHistory(id))),
    Promise.all(times.map((index) => others.list([`nobody-${index}`, `nothing-${index}`], 1))),
  ]);
  expect(histories.filter(({ complete }) => !complete)).toEqual([]);
  expect(runs.flat()).toEqual([]);
});

test('a list by state goes on over pages that have none of it', async () => {
  await harness.client.createProject({ name: 'listed', description: '' });
  const names = Array.from({ length: 9 }, (_, n) => `one-${n}`);
  for (const name of names)
    await harness.client.createInstance(
      { name, hostname: name, description: '', ncpus: 1, memory: 2 ** 30, start: name === 'one-2' || name === 'one-7' },
      { project: 'listed' },
    );
  const list = async (state: string, limit: number) => {
    const found: string[] = [];
    let token: string | null = null;
    do {
      const url = new URL(`${harness.stack.apiUrl}/v1/instances?project=listed&state=${state}&limit=${limit}`);
      if (token !== null) url.searchParams.set('page_token', token);
      const page = (await (await fetch(url)).json()) as { items: { name: string }[]; next_page: string | null };
      expect(page.items.length).toBeLessThanOrEqual(limit);
      found.push(...page.items.map(({ name }) => name));
      token = page.next_page;
    } while (token !== null);
    return found;
  };
  for (const name of ['one-2', 'one-7'])
    await harness.shows((await harness.client.getInstance(name, { project: 'listed' })).id, 'running');
  for (const limit of [1, 2, 3, 100]) {
    expect(await list('running', limit)).toEqual(['one-2', 'one-7']);
    expect(await list('stopped', limit)).toEqual(names.filter((name) => name !== 'one-2' && name !== 'one-7'));
    expect(await list('failed', limit)).toEqual([]);
  }
});

describe('the answer', () => {
  const request = (instanceId: string): OperationRequest => ({
    kind: 'start',
    input: { instanceId, reason: 'user' },
    summary: 'a test',
    waitMs: 60_000,
  });
  const operations = () => new Operations(harness.temporal, harness.database.db);
  const isOpen = async (id: string) =>
    (await harness.temporal.workflow.getHandle(workflowIds.start(id)).describe()).status.name === 'RUNNING';
  /** No sled takes the command to run: a start goes on asking until it is woken. */
  const hold = () =>
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));

  /** Starts an instance through the API; the answer's status, operation and error. */
  async function start(
    id: string,
    options: RequestInit = {},
  ): Promise<{ status: number; operationId: string | undefined; message: string }> {
    const response = await fetch(`${harness.stack.apiUrl}/v1/instances/${id}/start`, { ...options, method: 'POST' });
    const { message = '' } = (await response.json()) as { message?: string };
    return { status: response.status, operationId: response.headers.get('location')?.split('/').at(-1), message };
  }

  /** Ends the open operation of an instance, past its workflow, once it has claimed. */
  async function endPast(id: string, error: object | null): Promise<void> {
    await waitUntil(async () => {
      const ended = await harness.database.db.execute(sql`
        UPDATE operation SET succeeded = ${error === null}, time_ended = now(), error = ${error === null ? null : JSON.stringify(error)}::jsonb
        WHERE instance_id = ${id} AND vmm_id IS NOT NULL AND time_ended IS NULL`);
      return ended.rowCount === 1;
    }, 'nothing was claimed');
  }

  test('comes with the outcome, although the workflow does not close', async () => {
    hold();
    const [lucky, other] = [await harness.create(), await harness.create()];
    const [succeeds, fails] = [start(lucky), start(other)];
    await endPast(lucky, null);
    expect((await succeeds).status).toBe(202);
    await endPast(other, { status: 409, error_code: 'Conflict', message: 'as it is on record' });
    expect(await fails).toMatchObject({ status: 409, message: 'as it is on record' });
    expect([await isOpen(lucky), await isOpen(other)]).toEqual([true, true]);
    // Whoever asks now is not held up either.
    expect(await start(lucky)).toMatchObject({ status: 202, operationId: (await succeeds).operationId });
  });

  test('is never that of an earlier run: what is over is waited for to close, within a limit', async () => {
    hold();
    const id = await harness.create();
    const first = operations().run(request(id));
    await endPast(id, null);
    const refusal = await operations()
      .run({ ...request(id), waitMs: 0 })
      .catch((error: unknown) => error);
    expect(refusal).toMatchObject({ code: 'ServiceUnavailable' });
    const second = operations().run(request(id));
    harness.everywhere(wake);
    expect((await first).done).toBe(true);
    expect((await second).done).toBe(true);
    expect((await second).operationId).not.toBe((await first).operationId);
  });

  test('is what is on record, where a workflow is terminated that has recorded it', async () => {
    hold();
    const id = await harness.create();
    // Nobody listens for this one: it hears of the end of the workflow first.
    const waiting = operations().run(request(id));
    await endPast(id, null);
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).terminate('by a test');
    expect((await waiting).done).toBe(true);
  });

  test('is that of the call that was joined, also for the same key once more', async () => {
    hold();
    const id = await harness.create();
    const first = start(id);
    const starting = async () => (await harness.record(id)).externalState === 'starting';
    await waitUntil(starting, 'it never began');
    const key = { headers: { 'idempotency-key': randomUUID() } };
    const joins = start(id, key);
    await waitUntil(async () => {
      const { rows } = await harness.database.db.execute(
        sql`SELECT 1 FROM idempotency_key WHERE key = ${key.headers['idempotency-key']} AND operation_id IS NOT NULL`,
      );
      return rows.length === 1;
    }, 'the key was never settled');
    harness.everywhere(wake);
    const { operationId } = await first;
    expect(await joins).toMatchObject({ status: 202, operationId });
    await harness.shows(id, 'running');
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    expect(await start(id, key)).toMatchObject({ status: 202, operationId });
    expect((await harness.record(id)).externalState).toBe('stopped');
  });

  test('comes also where nothing is heard, although it seems to be', async () => {
    const deaf = {
      hears: true,
      heard: () => new Promise<never>(() => {}),
      whileItHears: (ms: number, signal: AbortSignal) => pause(ms, undefined, { signal }),
    };
    const id = await harness.create();
    const answer = await new Operations(harness.temporal, harness.database.db, deaf).run(request(id));
    expect(answer.done).toBe(true);
    await harness.shows(id, 'running');
  });

  test('comes also while the listening connection is ended time and again', async () => {
    let ended = 0;
    let goesOn = true;
    const ending = (async () => {
      while (goesOn) {
        const { rows } = await harness.database.db.execute(sql`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mooring-api-listener'`);
        ended += rows.length;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    for (let round = 0; round < 5; round++) {
      const id = await harness.create();
      expect((await start(id)).status).toBe(202);
      await harness.shows(id, 'running');
    }
    goesOn = false;
    await ending;
    expect(ended).toBeGreaterThan(0);
  });

  test('lets the next call follow at once: after a failure, and after a stop', async () => {
    const id = await harness.create();
    const seen = new Set<string | undefined>();
    for (let round = 0; round < 3; round++) {
      harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
      expect((await start(id)).status).toBeGreaterThanOrEqual(400);
      harness.everywhere(wake);
      const started = await start(id);
      expect(started.status).toBe(202);
      seen.add(started.operationId);
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopped');
    }
    expect(seen.size).toBe(3);
  });

  test('lets the next migration follow at once', async () => {
    const id = await harness.running();
    const { rows } = await harness.database.db.execute<{ id: string }>(
      sql`SELECT id FROM sled WHERE policy = 'in_service'`,
    );
    for (let round = 0; round < 3; round++) {
      const here = (await harness.record(id)).active?.sledId;
      const there = rows.find((sled) => sled.id !== here)?.id ?? '';
      await harness.client.migrateInstance(id, there);
      await waitUntil(async () => {
        const { active, externalState } = await harness.record(id);
        return externalState === 'running' && active?.sledId === there;
      }, 'it never arrived');
    }
  });
});
