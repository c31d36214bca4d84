/** Each reconciling loop against planted faults, and beside healthy things that it must leave alone. */
import { randomUUID } from 'node:crypto';
import { connect, createServer, type Socket } from 'node:net';
import { sql } from 'drizzle-orm';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { restartInstances } from '../../activities/auto-restart.ts';
import { checkInvariants } from '../../db/invariants/check-invariants.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { RECONCILER_PURPOSE, RECONCILERS } from '../../model/reconcilers.ts';
import { OUTCOME_RUNNING, SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import { scheduleOf, workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { CallFault } from '../../sled-agent/faults.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { ensureSchedules } from '../../temporal/schedules.ts';
import { searchAttributePairs } from '../../temporal/subject-names.ts';
import { WorkflowStarter } from '../../temporal/workflow-starter.ts';
import { type RunningCommand, runCommand, startCommand } from '../support/command.ts';
import { type Harness, refused, silence, startHarness, wake } from '../support/harness.ts';
import { loopbackAddress } from '../support/sled.ts';

const commands: RunningCommand[] = [];
let harness: Harness;
/** Nothing here is to be touched by any pass. */
let healthy: string[];
beforeAll(async () => {
  // All are switched off: what happens is what a pass by hand does.
  harness = await startHarness({ reconcilersOff: RECONCILERS, registerTimeoutMs: 6_000 });
  healthy = [await harness.running(), await harness.create()];
});
afterEach(async () => {
  harness.everywhere(wake);
  for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'provisionable');
});
afterAll(async () => {
  for (const command of commands) await command.stop('SIGKILL');
  await harness?.close();
});

const db = () => harness.database.db;
const run = (name: (typeof RECONCILERS)[number]) => harness.client.runReconciler(name);
const sums = async () =>
  (await db().execute(sql`SELECT name, reserved_threads, reserved_memory_bytes FROM sled ORDER BY name`)).rows;

/** Runs passes while healthy things are watched. */
async function leavingHealthyAlone<T>(work: () => Promise<T>): Promise<T> {
  const before = await Promise.all(healthy.map((id) => harness.record(id)));
  const done = await work();
  expect(await Promise.all(healthy.map((id) => harness.record(id)))).toEqual(before);
  return done;
}

describe('switched off and on', () => {
  test('what a schedule starts says of itself what the others do; one of an earlier version is brought up to date', async () => {
    const handle = harness.temporal.schedule.getHandle(scheduleOf(harness.installation, 'reaper'));
    const now = async () => {
      const { action, state } = await handle.describe();
      const { staticSummary, typedSearchAttributes } = action;
      const outcome = JSON.parse(JSON.stringify(typedSearchAttributes ?? []));
      return { paused: state.paused, staticSummary, outcome };
    };
    const made = await now();
    expect(made).toMatchObject({ paused: true, staticSummary: RECONCILER_PURPOSE.reaper });
    // One that vanished would keep the schedule from starting anything: a pass writes its outcome itself.
    expect(made.outcome).toEqual([]);
    await handle.update(({ action, ...schedule }) => ({
      ...schedule,
      action: {
        ...action,
        staticSummary: 'of old',
        searchAttributes: {},
        typedSearchAttributes: searchAttributePairs({ outcome: OUTCOME_RUNNING }),
      },
    }));
    const old = await now();
    expect(old.staticSummary).toBe('of old');
    expect(JSON.stringify(old.outcome)).toContain(OUTCOME_RUNNING);
    await ensureSchedules(harness.temporal, harness.installation);
    expect(await now()).toEqual(made);

    const query = `WorkflowType = "reaper" AND ${SEARCH_ATTRIBUTES.outcome} = "done"`;
    const before = (await harness.temporal.workflow.count(query)).count;
    await handle.trigger();
    await waitUntil(
      async () => (await harness.temporal.workflow.count(query)).count > before,
      'a pass of the schedule is not to be found by its outcome',
      60_000,
      200,
    );
  });

  test('all are listed, with what they are for, and off', async () => {
    const loops = await harness.client.listReconcilers();
    expect(loops.map(({ name }) => name)).toEqual([...RECONCILERS]);
    for (const loop of loops) expect(loop).toMatchObject({ scheduled: true, enabled: false, time_next_run: null });
  });

  test('the switch is the pause of the Temporal Schedule, and a worker that starts leaves it as it is', async () => {
    const schedule = harness.temporal.schedule.getHandle(scheduleOf(harness.installation, 'reaper'));
    expect(await harness.client.setReconciler('reaper', true)).toMatchObject({ enabled: true });
    expect((await schedule.describe()).state.paused).toBe(false);
    await waitUntil(
      async () => (await harness.client.listReconcilers()).some((loop) => loop.last_summary !== null),
      'it never ran by itself',
      90_000,
    );
    expect(await harness.client.setReconciler('reaper', false)).toMatchObject({ enabled: false });
    await ensureSchedules(harness.temporal, harness.installation);
    expect((await schedule.describe()).state.paused).toBe(true);
  });

  test('one that does not exist is 400 by name', async () => {
    const response = await fetch(`${harness.stack.apiUrl}/v1/system/reconcilers/gardener/run`, { method: 'POST' });
    expect(response.status).toBe(400);
    expect(await response.text()).toMatch(/watcher/);
  });

  test('the command runs a pass and says what it found, also as JSON', async () => {
    const mooring = async (...args: string[]) =>
      (await runCommand([...args, '--api-url', harness.stack.apiUrl])).stdout;
    expect(await mooring('reconcile', 'watcher')).toMatch(/asked 3 sleds: nothing to do/);
    expect(JSON.parse(await mooring('reconcile', 'auto-restart', '--json'))).toMatchObject({
      name: 'auto-restart',
      found: { candidates: 0, started: [], cooling_down: [], without_room: [], postponed: [] },
    });
    expect(JSON.parse(await mooring('reconcile', 'list', '--json'))).toHaveLength(RECONCILERS.length);
  });
});

describe('passes over healthy things', () => {
  test.each(RECONCILERS)('%s finds nothing to do', async (name) => {
    const pass = await leavingHealthyAlone(() => run(name));
    expect(pass.summary).toMatch(/nothing to do$/);
    for (const [what, ids] of Object.entries(pass.found)) if (Array.isArray(ids)) expect(ids, what).toEqual([]);
  });
});

describe('the watcher', () => {
  test('a VMM that its sled does not know is lost: Failed', async () => {
    const id = await harness.running();
    const { active } = await harness.record(id);
    harness.sled(active?.sledId).agent.faults.lose(active?.id ?? '');
    const pass = await leavingHealthyAlone(() => run('watcher'));
    expect(pass.found.lost).toEqual([active?.id]);
    await harness.shows(id, 'failed');
    await harness.rests(id);
  });

  test.each([
    ['503', { type: 'refuse', status: 503 }],
    ['410', { type: 'refuse', status: 410 }],
    ['404 without the code', { type: 'refuse', status: 404, error_code: 'NOT_FOUND' }],
    ['403', { type: 'refuse', status: 403 }],
    ['nonsense', { type: 'garbage' }],
    ['a broken connection', { type: 'drop_before' }],
  ] as const)('%s about a VMM proves nothing', async (_, act) => {
    const id = await harness.running();
    const { active } = await harness.record(id);
    const { agent } = harness.sled(active?.sledId);
    agent.faults.plant({ call: 'list', act });
    expect((await run('watcher')).found).toMatchObject({ lost: [], silent: [harness.sled(active?.sledId).name] });
    agent.faults.clear();
    // Missing from the inventory, and the sled won't answer.
    agent.faults.lose(active?.id ?? '');
    agent.faults.plant({ call: 'get', act: act.type === 'garbage' ? { type: 'refuse', status: 500 } : act });
    expect((await run('watcher')).found.lost).toEqual([]);
    expect((await harness.record(id)).externalState).toBe('running');
    agent.faults.clear();
    expect((await run('watcher')).found.lost).toEqual([active?.id]);
  });

  test('a VMM that is being registered is not lost', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 1_000 } }));
    const start = harness.client.startInstance(id);
    await harness.shows(id, 'starting');
    expect((await run('watcher')).found.lost).toEqual([]);
    await start;
    await harness.shows(id, 'running');
  });

  test('what a sled has and the database does not know, or knows as gone, is unregistered', async () => {
    const [sled] = harness.stack.sleds;
    const stray = randomUUID();
    const response = await fetch(`${sled?.agent.url}/vmms/${stray}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        instance_id: randomUUID(),
        vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
        vmm_spec: { name: 'stray', ncpus: 1, memory_bytes: 2 ** 26 },
        vmm_addr: `${sled?.agent.address.split(':')[0]}:12499`,
      }),
    });
    expect(response.status).toBe(200);
    const id = await harness.running();
    const { active } = await harness.record(id);
    const host = harness.sled(active?.sledId);
    await failVmm(db(), active?.id ?? '', 'a verdict that was wrong');
    const pass = await leavingHealthyAlone(() => run('watcher'));
    expect([...(pass.found.unregistered as string[])].sort()).toEqual([stray, active?.id].sort());
    expect(host.agent.hypervisor.count(active?.id ?? '')).toBeNull();
    await harness.shows(id, 'failed');
  });

  test('a lost report: what the sled answers when it is asked counts as much', async () => {
    const id = await harness.running();
    const { active } = await harness.record(id);
    const { agent } = harness.sled(active?.sledId);
    agent.faults.holdReports(true);
    agent.faults.halt(active?.id ?? '');
    await waitUntil(async () => {
      await run('watcher');
      return (await harness.record(id)).externalState === 'stopped';
    }, 'it never learned of the halt');
    await harness.rests(id);
    expect((await harness.record(id)).instance.intendedState).toBe('guest_shutdown');
  });

  test('a silent sled fails nothing; one slow sled delays nobody', async () => {
    const id = await harness.running();
    const { here, there } = await harness.placed(id);
    there.agent.faults.plant({ call: 'list', act: { type: 'delay', ms: 2_500 }, times: 1 });
    here.agent.faults.lose((await harness.record(id)).active?.id ?? '');
    let over = false;
    const pass = run('watcher').then((found) => {
      over = true;
      return found;
    });
    await harness.shows(id, 'failed');
    expect(over).toBe(false);
    await pass;
    harness.everywhere(silence);
    const silent = await leavingHealthyAlone(() => run('watcher'));
    expect([...(silent.found.silent as string[])].sort()).toEqual(harness.stack.sleds.map(({ name }) => name).sort());
    expect(silent.found.lost).toEqual([]);
  });

  test('a reservation that waited for a silent sled is released when it answers, not before', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => {
      agent.faults.plant({ call: 'register', act: { type: 'drop_after' } });
      agent.faults.plant({ call: 'unregister', act: { type: 'drop_before' } });
    });
    await refused(harness.client.startInstance(id));
    // On each sled that the start went on to.
    const waiting = await harness.holds(id);
    expect([...new Set(waiting.reservations)]).toEqual(['tombstoned']);
    expect(waiting.charge).toBe(false);
    await run('watcher');
    await run('reaper');
    expect(await harness.holds(id)).toEqual(waiting);
    harness.everywhere(wake);
    const pass = await leavingHealthyAlone(() => run('watcher'));
    expect(pass.found.released).toHaveLength(waiting.reservations.length);
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  });
});

describe('the updater', () => {
  test('a lost signal: what was written without one is found', async () => {
    const id = await harness.running();
    const { active } = await harness.record(id);
    const state = { state: 'destroyed', gen: 99, time_updated: new Date().toISOString() } as const;
    await applyReport(db(), active?.id ?? '', { vmm_state: state });
    expect((await harness.record(id)).externalState).toBe('stopping');
    const pass = await leavingHealthyAlone(() => run('updater'));
    expect(pass.found.signalled).toEqual([id]);
    await harness.shows(id, 'stopped');
    await harness.rests(id);
    harness.sled(active?.sledId).agent.faults.lose(active?.id ?? '');
  });

  test('a stop that was recorded and never carried is delivered', async () => {
    const id = await harness.running();
    await recordStop(db(), id);
    expect((await harness.record(id)).externalState).toBe('running');
    await leavingHealthyAlone(() => run('updater'));
    await harness.shows(id, 'stopped');
  });

  test('a saga that an operator terminated is unwound', async () => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));
    const start = harness.client.startInstance(id);
    await waitUntil(async () => (await harness.record(id)).active?.commandedAt != null, 'it was never commanded');
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).terminate('by hand');
    expect((await refused(start)).status).toBe(409);
    harness.everywhere(wake);
    await waitUntil(async () => {
      await run('updater');
      return (await harness.record(id)).externalState === 'stopped';
    }, 'it was never unwound');
    expect(await harness.holds(id)).toEqual({ reservations: [], charge: false });
  });

  test('an API that dies between writing a report and signalling', async () => {
    const id = await harness.running();
    const { active } = await harness.record(id);
    // An API whose connection to Temporal is cut, so that it can write but not signal.
    const sockets = new Set<Socket>();
    const temporalPort = Number(harness.stack.temporalAddress.split(':')[1]);
    const proxy = createServer((socket) => {
      const upstream = connect(temporalPort, '127.0.0.1');
      for (const end of [socket, upstream]) sockets.add(end.on('error', () => {}));
      socket.pipe(upstream).pipe(socket);
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const bound = proxy.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : 0;
    const doomed = startCommand(['api', '--port', '0', '--insecure-sleds'], {
      env: {
        DATABASE_URL: harness.stack.databaseUrl,
        TEMPORAL_ADDRESS: `127.0.0.1:${port}`,
        MOORING_LOG_LEVEL: 'silent',
      },
    });
    commands.push(doomed);
    const [url] = await doomed.untilPrinted(/http:\S+/);
    proxy.close();
    for (const socket of sockets) socket.destroy();
    const answer = fetch(`${url}/vmms/${active?.id}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ vmm_state: { state: 'failed', gen: 99, time_updated: new Date().toISOString() } }),
    }).then(
      ({ status }) => status,
      () => 'cut',
    );
    await waitUntil(async () => (await harness.record(id)).active?.state === 'failed', 'it never wrote the report');
    await doomed.stop('SIGKILL');
    // Not taken: an agent would report it again.
    expect(await answer).not.toBe(204);
    expect((await harness.record(id)).instance.state).toBe('vmm');
    await leavingHealthyAlone(() => run('updater'));
    await harness.shows(id, 'failed');
  });
});

describe('the reaper', () => {
  /** A VMM row that nothing names. */
  async function plantVmm(id: string, state: string, sledId: string, reserve: boolean): Promise<string> {
    const vmmId = randomUUID();
    await db().execute(sql`
      INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, unwinding_since, failure_reason)
      VALUES (${vmmId}, ${id}, ${sledId}, '127.9.9.9', 1, ${state}::vmm_state,
        ${state === 'saga_unwound' ? new Date().toISOString() : null}::timestamptz, ${state === 'failed' ? 'planted' : null})`);
    if (reserve)
      await db().execute(sql`
        INSERT INTO sled_reservation (vmm_id, instance_id, sled_id, threads, memory_bytes, kind)
        VALUES (${vmmId}, ${id}, ${sledId}, 3, 1000, 'tombstoned')`);
    return vmmId;
  }

  test('abandoned VMM rows are deleted with what they reserve; one that waits for its sled is left', async () => {
    const id = await harness.create();
    const sledId = harness.stack.sleds[0]?.id ?? '';
    const before = await sums();
    const abandoned = [
      await plantVmm(id, 'destroyed', sledId, true),
      await plantVmm(id, 'failed', sledId, true),
      await plantVmm(id, 'saga_unwound', sledId, false),
    ];
    const pass = await leavingHealthyAlone(() => run('reaper'));
    expect([...(pass.found.vmms as string[])].sort()).toEqual(abandoned.sort());
    expect(await sums()).toEqual(before);

    const waits = await plantVmm(id, 'saga_unwound', sledId, true);
    expect((await run('reaper')).found).toEqual({
      signalled: [],
      vmms: [],
      reservations: [],
      charges: [],
      old_keys: 0,
    });
    expect((await harness.holds(id)).reservations).toEqual(['tombstoned']);
    // Its sled answers: the watcher releases it.
    expect((await run('watcher')).found.released).toEqual([waits]);
    // Its row is the update's to retire now; the reaper of the next test must not find it.
    await harness.rests(id);
  });

  test('a living VMM that nothing names is no row to delete', async () => {
    const id = await harness.create();
    const vmmId = await plantVmm(id, 'running', harness.stack.sleds[0]?.id ?? '', true);
    expect((await run('reaper')).found).toEqual({
      signalled: [id],
      vmms: [],
      reservations: [],
      charges: [],
      old_keys: 0,
    });
    await waitUntil(async () => (await harness.holds(id)).reservations.length === 0, `VMM ${vmmId} was never ended`);
    await harness.rests(id);
  });

  test('an orphan reservation of a deleted VMM, and one on an expunged sled', async () => {
    const id = await harness.create();
    const before = await sums();
    const deleted = await plantVmm(id, 'destroyed', harness.stack.sleds[0]?.id ?? '', true);
    await db().execute(sql`UPDATE vmm SET time_deleted = now() WHERE id = ${deleted}`);
    const pass = await leavingHealthyAlone(() => run('reaper'));
    expect(pass.found.reservations).toEqual([deleted]);
    expect(await sums()).toEqual(before);

    const gone = await harness.client.addSled({ name: 'gone', address: '127.0.0.1:9', threads: 9, memory: 2 ** 30 });
    const onExpunged = await plantVmm(id, 'saga_unwound', gone.id, true);
    await db().execute(sql`UPDATE sled SET policy = 'expunged', time_expunged = now() WHERE id = ${gone.id}`);
    expect((await run('reaper')).found.vmms).toEqual([onExpunged]);
    expect((await harness.holds(id)).reservations).toEqual([]);
  });

  test('an orphan charge, which would refuse every start', async () => {
    const id = await harness.create();
    const { projectId } = (await harness.record(id)).instance;
    const before = (await harness.client.getQuota('default')).cpus_in_use;
    await db().execute(sql`INSERT INTO provisioning_charge VALUES (${id}, ${projectId}, 7, 1000)`);
    const pass = await leavingHealthyAlone(() => run('reaper'));
    expect(pass.found.charges).toEqual([id]);
    expect((await harness.client.getQuota('default')).cpus_in_use).toBe(before);
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
  });

  /** As if all that has ended of an instance had done so more than a month ago. */
  async function age(id: string): Promise<void> {
    for (const [table, column] of [
      ['operation', 'time_ended'],
      ['vmm', 'time_deleted'],
      ['instance', 'time_deleted'],
    ] as const)
      await db().execute(sql`
        UPDATE ${sql.identifier(table)} SET ${sql.identifier(column)} = ${sql.identifier(column)} - interval '31 days'
        WHERE ${sql.identifier(table === 'instance' ? 'id' : 'instance_id')} = ${id} AND ${sql.identifier(column)} IS NOT NULL`);
  }
  async function ranOnce(): Promise<{ id: string; operationId: string }> {
    const id = await harness.create();
    await harness.client.startInstance(id);
    await harness.shows(id, 'running');
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    await harness.rests(id);
    const { rows } = await db().execute(sql`SELECT id FROM operation WHERE instance_id = ${id}`);
    return { id, operationId: String(rows[0]?.id) };
  }

  test('what has long been over is forgotten, and is 404 from then on; the rest of a history stays', async () => {
    const [stays, goes, keyed] = [await ranOnce(), await ranOnce(), await ranOnce()];
    await harness.client.startInstance(stays.id);
    await harness.shows(stays.id, 'running');
    await harness.client.deleteInstance(goes.id);
    await harness.rests(goes.id);
    await harness.client.deleteInstance(keyed.id);
    await harness.rests(keyed.id);
    for (const { id } of [stays, goes, keyed]) await age(id);
    // The client has given each call a key: those of two are forgotten, in the same pass.
    await db().execute(sql`
      UPDATE idempotency_key SET time_created = now() - interval '8 days' WHERE instance_id IN (${stays.id}, ${goes.id})`);
    // The start of the one that runs is of today.
    await db().execute(sql`
      UPDATE operation SET time_ended = now() WHERE instance_id = ${stays.id} AND id <> ${stays.operationId}`);
    const pass = await leavingHealthyAlone(() => run('reaper'));
    expect(pass.found).toMatchObject({ old_keys: 5, old_operations: 2, old_vmms: 3, old_instances: 1 });
    expect(pass.summary).toContain('forgot 2 old operations, forgot 3 old VMMs, forgot 1 old deleted instance');

    for (const gone of [stays.operationId, goes.operationId]) {
      const error = await refused(harness.client.getOperation(gone));
      expect(error).toMatchObject({ status: 404, errorCode: 'NotFound', requestId: expect.any(String) });
      expect(error.message).toContain(gone);
    }
    expect((await refused(harness.client.getInstanceHistory(goes.id))).status).toBe(404);
    const { items } = await harness.client.getInstanceHistory(stays.id);
    expect(items.filter(({ kind }) => kind === 'operation').length).toBeGreaterThan(0);
    // A key names the operation: the same call again is still that one, and gets its outcome.
    expect(await harness.client.getOperation(keyed.operationId)).toMatchObject({ outcome: 'succeeded' });
    // What was done is on record, whatever has become of its subject.
    const { rows } = await db().execute(
      sql`SELECT 1 FROM audit_log WHERE subject = ${goes.id} AND operation = 'instance_delete'`,
    );
    expect(rows).toHaveLength(1);
    // Without the journal, which has what these tests have planted.
    expect((await checkInvariants(db(), { atRest: false, journal: 'ignored' })).violations).toEqual([]);
  });

  test('a start whose workflow is open is known as open, whatever is on record of it', async () => {
    const workflows = new WorkflowStarter(harness.temporal);
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));
    const start = harness.client.startInstance(id);
    await waitUntil(async () => (await harness.record(id)).active?.commandedAt != null, 'it was never commanded');
    const { runId } = await harness.temporal.workflow.getHandle(workflowIds.start(id)).describe();
    await waitUntil(
      async () => (await workflows.findOpenSagas(0)).includes(runId),
      'it is not found open',
      60_000,
      200,
    );
    expect(await workflows.findOpenSagas(3_600_000)).toEqual([]);
    harness.everywhere(wake);
    await start;
    await waitUntil(
      async () => !(await workflows.findOpenSagas(0)).includes(runId),
      'it is found open for ever',
      60_000,
      200,
    );
  });
});

describe('auto-restart', () => {
  const willing = { auto_restart_policy: 'best_effort' } as const;

  async function lose(id: string): Promise<void> {
    const { active } = await harness.shows(id, 'running');
    harness.sled(active?.sledId).agent.faults.lose(active?.id ?? '');
    await run('watcher');
    await harness.shows(id, 'failed');
    await harness.rests(id);
  }

  /** Instances that failed, as rows. */
  async function plantFailed(howMany: number, ncpus: number): Promise<string[]> {
    const ids = [];
    for (let n = 0; n < howMany; n++) ids.push(await harness.create(undefined, { ...willing, ncpus }));
    for (const id of ids)
      await db().execute(sql`
        UPDATE instance SET state = 'failed', intended_state = 'running', state_generation = state_generation + 1 WHERE id = ${id}`);
    return ids;
  }

  test('a failed instance is started again at once; the second time it must cool down', async () => {
    const id = await harness.running(willing);
    await lose(id);
    const pass = await leavingHealthyAlone(() => run('auto-restart'));
    expect(pass.found.started).toEqual([id]);
    const again = await harness.shows(id, 'running');
    expect(again.instance).toMatchObject({ lastStartReason: 'auto_restart', intendedState: 'running' });
    expect((await harness.client.getInstance(id)).auto_restart_cooldown_expiration).not.toBeNull();
    await lose(id);
    expect((await run('auto-restart')).found).toMatchObject({ started: [], cooling_down: [id] });
    // Read from the database, so that it survives whatever is restarted; an operator may shorten it.
    await harness.client.updateInstance(id, { auto_restart_cooldown_seconds: 0 });
    expect((await run('auto-restart')).found.started).toEqual([id]);
    await harness.shows(id, 'running');
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });

  test('an unset policy means best_effort; never means never', async () => {
    const unset = await harness.running({ auto_restart_policy: null });
    const never = await harness.running({ auto_restart_policy: 'never' });
    await lose(unset);
    await lose(never);
    expect((await run('auto-restart')).found.started).toEqual([unset]);
    await harness.shows(unset, 'running');
    expect((await harness.record(never)).externalState).toBe('failed');
    await harness.client.stopInstance(unset);
    await harness.shows(unset, 'stopped');
  });

  test('one that the user asked to stop never is, whatever became of it', async () => {
    const stopped = await harness.running(willing);
    await lose(stopped);
    await harness.client.stopInstance(stopped);
    const racing = await harness.running(willing);
    const { active } = await harness.record(racing);
    const { agent } = harness.sled(active?.sledId);
    agent.faults.plant({ call: 'state:stopped', act: { type: 'drop_before' } });
    await harness.client.stopInstance(racing);
    agent.faults.lose(active?.id ?? '');
    await run('watcher');
    await harness.shows(racing, 'stopped');
    expect((await run('auto-restart')).found).toMatchObject({ started: [] });
  });

  /** Waits until so many starts of an instance have failed, and nothing of them is left on it. */
  async function startUnwound(id: string, times: number): Promise<void> {
    await waitUntil(async () => {
      const { rows } = await db().execute(
        sql`SELECT 1 FROM operation WHERE instance_id = ${id} AND time_ended IS NOT NULL AND NOT succeeded`,
      );
      return rows.length === times && (await harness.record(id)).instance.activeVmmId === null;
    }, 'its start never unwound');
  }

  test.each<['register' | 'state:running', CallFault['act']]>([
    ['register', { type: 'refuse', status: 409 }],
    ['register', { type: 'drop_before' }],
    ['state:running', { type: 'refuse', status: 409 }],
  ])('one whose automatic start failed through its sleds (%s: %o) keeps its cooldown', async (call, act) => {
    const id = await harness.running(willing);
    await lose(id);
    harness.everywhere(({ agent }) => agent.faults.plant({ call, act }));
    expect((await run('auto-restart')).found.started).toEqual([id]);
    await startUnwound(id, 1);
    expect((await harness.record(id)).instance.timeLastAutoRestarted).toBeNull();
    harness.everywhere(wake);
    expect((await run('auto-restart')).found.started).toEqual([id]);
    await harness.shows(id, 'running');
    // The one that a sled has taken counts.
    const { timeLastAutoRestarted } = (await harness.record(id)).instance;
    expect(timeLastAutoRestarted).not.toBeNull();
    await lose(id);
    expect((await run('auto-restart')).found).toMatchObject({ started: [], cooling_down: [id] });
    // One that fails later gives back the charge of the one before it, not none.
    await harness.client.updateInstance(id, { auto_restart_cooldown_seconds: 0 });
    harness.everywhere(({ agent }) => agent.faults.plant({ call, act }));
    expect((await run('auto-restart')).found.started).toEqual([id]);
    await startUnwound(id, 2);
    expect((await harness.record(id)).instance.timeLastAutoRestarted).toEqual(timeLastAutoRestarted);
    harness.everywhere(wake);
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });

  test('the start that a user asked for, and that unwound, is not: the user got the error', async () => {
    const id = await harness.create(undefined, willing);
    harness.everywhere(({ agent }) =>
      agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
    );
    await refused(harness.client.startInstance(id));
    harness.everywhere(wake);
    expect((await run('auto-restart')).found.started).toEqual([]);
  });

  test('no start is begun that no sled has room for, and none beside those begun before it', async () => {
    const ids = await plantFailed(5, 40);
    for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'non_provisionable');
    const full = await run('auto-restart');
    expect([...(full.found.without_room as string[])].sort()).toEqual([...ids].sort());
    expect(full.found.started).toEqual([]);
    const none = await db().execute(
      sql`SELECT 1 FROM operation WHERE instance_id IN (SELECT value::uuid FROM jsonb_array_elements_text(${JSON.stringify(ids)}::jsonb))`,
    );
    expect(none.rows).toHaveLength(0);
    for (const { id } of harness.stack.sleds) await harness.client.setSledPolicy(id, 'provisionable');
    // Three sleds of 64 threads: one each.
    const some = await run('auto-restart');
    expect((some.found.started as string[]).length).toBeLessThanOrEqual(3);
    expect((some.found.started as string[]).length + (some.found.without_room as string[]).length).toBe(5);
    for (const id of some.found.started as string[]) await harness.shows(id, 'running');
    await Promise.all(ids.map((id) => harness.client.stopInstance(id)));
    for (const id of ids) await harness.shows(id, 'stopped');
  });

  test('starts that were begun and that no worker has come to yet count as under way', async () => {
    const ids = await plantFailed(23, 1);
    const queued = new Set(ids.slice(0, 19));
    const begun: string[] = [];
    const pass = await restartInstances(db(), {
      isStarting: async (id) => queued.has(id),
      autoRestart: async (id) => {
        begun.push(id);
        return true;
      },
    });
    expect(begun).toHaveLength(1);
    expect(queued.has(begun[0] ?? '')).toBe(false);
    expect(pass).toMatchObject({ started: begun, withoutRoom: [] });
    expect(pass.postponed).toHaveLength(3);
    await Promise.all(ids.map((id) => harness.client.stopInstance(id)));
  });

  test('one pass begins only so many', async () => {
    const ids = await plantFailed(22, 1);
    const pass = await run('auto-restart');
    expect(pass.found.started).toHaveLength(20);
    expect(pass.found.postponed).toHaveLength(2);
    for (const id of pass.found.started as string[]) await harness.shows(id, 'running');
    const second = await run('auto-restart');
    expect(second.found.started).toHaveLength(2);
    for (const id of ids) await harness.shows(id, 'running');
  });
});

// The last one, since its sleds are gone after it.
test('what CPU models a sled offers is learnt from its agent, and a guest goes only where its own is offered', async () => {
  const agents: SledAgentHandle[] = [];
  const begin = async (name: string, listen: string, cpuModels: readonly string[]) => {
    const agent = await startSledAgent({
      ...{ name, listen, cpuModels, controlPlaneUrl: harness.stack.apiUrl, transitionMs: 10 },
      ...{ threads: 8, memoryBytes: 2 ** 34 },
    });
    agents.push(agent);
    return agent;
  };
  const add = async (name: string, cpuModels: readonly string[]) => {
    const agent = await begin(name, `${loopbackAddress()}:0`, cpuModels);
    const sled = await harness.client.addSled({ name, address: agent.address, threads: 8, memory: 2 ** 34 });
    return { agent, sled };
  };
  const modelsOf = async (id: string) => (await harness.client.getSled(id)).cpu_models;
  try {
    const here = await add('cpu-here', ['EPYC-v1', 'Nehalem-v1']);
    const there = await add('cpu-there', ['Nehalem-v1']);
    expect([await modelsOf(here.sled.id), await modelsOf(there.sled.id)]).toEqual([
      ['EPYC-v1', 'Nehalem-v1'],
      ['Nehalem-v1'],
    ]);
    for (const { id } of [...harness.stack.sleds, there.sled])
      await harness.client.setSledPolicy(id, 'non_provisionable');
    const id = await harness.running();
    expect((await harness.record(id)).active).toMatchObject({ sledId: here.sled.id, cpuModel: 'EPYC-v1' });
    await harness.client.setSledPolicy(there.sled.id, 'provisionable');
    const error = await refused(harness.client.migrateInstance(id, there.sled.id));
    expect([error.status, error.message]).toEqual([409, expect.stringContaining('EPYC-v1')]);

    // Its server is replaced by one that can do more: the watcher learns of it, and the guest goes there with what it has.
    const { address } = there.agent;
    await there.agent.stop();
    await begin('cpu-there', address, ['Nehalem-v1', 'EPYC-v1']);
    await run('watcher');
    expect(await modelsOf(there.sled.id)).toEqual(['Nehalem-v1', 'EPYC-v1']);
    await harness.client.migrateInstance(id, there.sled.id);
    await waitUntil(
      async () => (await harness.record(id)).active?.sledId === there.sled.id,
      'the guest never moved',
      60_000,
    );
    expect((await harness.record(id)).active?.cpuModel).toBe('EPYC-v1');
    await harness.shows(id, 'running');
  } finally {
    for (const agent of agents) await agent.stop();
  }
});
