/** What was done, by whom, and how it ended: requests that begin sagas, what acts by itself, and how the log is read and kept. */

import { randomUUID } from 'node:crypto';
import Api from '@oxide/api';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { writeAudit } from '../../db/transactions/write-audit.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { AuditLogEntry } from '../../wire/operator-api/audit-log.ts';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
/** A program with a token of its own. */
let robot: MooringClient;
beforeAll(async () => {
  harness = await startHarness({ sleds: 3, reconcileEveryMs: 24 * 3_600_000 });
  const { token } = await harness.client.createToken({ name: 'robot', role: 'admin' });
  robot = new MooringClient({ url: harness.stack.apiUrl, token });
});
afterAll(() => harness?.close());

async function log(filter: Partial<AuditLogEntry>): Promise<AuditLogEntry[]> {
  const found = [];
  for await (const entry of harness.client.listAuditLog()) {
    if (Object.entries(filter).every(([key, value]) => entry[key as keyof AuditLogEntry] === value)) found.push(entry);
  }
  return found;
}

test('a start is on record with who, from where, on what, which operation, and how it ended', async () => {
  const id = await harness.create();
  const { operationId } = await robot.startInstance(id);
  const [entry, ...others] = await log({ operation_id: 'instance_start', subject: id });
  expect(others).toEqual([]);
  expect(entry).toMatchObject({
    actor_kind: 'operator',
    actor_name: 'robot',
    auth_method: 'access_token',
    source_ip: '127.0.0.1',
    subject_kind: 'instance',
    saga_operation_id: operationId,
    result: { kind: 'success', http_status_code: 202 },
    request_uri: `/v1/instances/${id}/start`,
  });
  expect(Date.parse(entry?.time_started ?? '')).toBeLessThanOrEqual(Date.parse(entry?.time_completed ?? ''));
  // The stack's own user needs no token, and is on record all the same.
  await harness.client.stopInstance(id);
  expect(await log({ operation_id: 'instance_stop', subject: id })).toMatchObject([
    { actor_kind: 'local', auth_method: null, credential_id: null, actor_name: 'local operator' },
  ]);
});

test('a start that fails is on record with the error that its caller got', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  const error = await refused(robot.startInstance(id));
  harness.everywhere(({ agent }) => agent.faults.clear());
  expect(await log({ operation_id: 'instance_start', subject: id })).toMatchObject([
    {
      result: { kind: 'error', http_status_code: 503, error_code: 'ServiceUnavailable', error_message: error.message },
    },
  ]);
});

test('a start without an idempotency key is on record, too', async () => {
  const id = await harness.create();
  const response = await fetch(`${harness.stack.apiUrl}/v1/instances/${id}/start`, { method: 'POST' });
  expect(response.status).toBe(202);
  const operation = response.headers.get('location')?.split('/').at(-1);
  expect(await log({ operation_id: 'instance_start', subject: id })).toMatchObject([
    { request_id: response.headers.get('x-request-id'), saga_operation_id: operation, result: { kind: 'success' } },
  ]);
});

test('a record whose API died meanwhile is completed with its operation', async () => {
  const id = await harness.create();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
  const call = new AbortController();
  const answer = robot.startInstance(id, { signal: call.signal }).catch(() => null);
  const begun = async () =>
    (
      await harness.database.db.execute(sql`
        SELECT id, time_completed, saga_operation_id FROM audit_log
        WHERE subject = ${id} AND operation = 'instance_start' AND saga_operation_id IS NOT NULL`)
    ).rows[0];
  await waitUntil(async () => (await begun()) !== undefined, 'it never began', 60_000, 20);
  expect((await begun())?.time_completed).toBeNull();
  // Nothing is listed that goes on.
  expect(await log({ operation_id: 'instance_start', subject: id })).toEqual([]);
  // What the API would have written is undone: its row stands as if it had died.
  harness.everywhere(({ agent }) => agent.faults.clear());
  await harness.shows(id, 'running');
  await answer;
  const operationId = String((await begun())?.saga_operation_id);
  await harness.database.db.execute(sql`
    UPDATE audit_log SET time_completed = NULL, result = NULL WHERE saga_operation_id = ${operationId}`);
  await harness.database.db.execute(sql`UPDATE operation SET time_ended = time_ended WHERE id = ${operationId}`);
  expect(await log({ saga_operation_id: operationId })).toMatchObject([
    { result: { kind: 'success', http_status_code: 202 } },
  ]);
});

test('the watcher’s verdict, the VMM that it unregisters and the start that follows by itself', async () => {
  const id = await harness.running({ auto_restart_policy: 'best_effort' });
  const { active } = await harness.record(id);
  const host = harness.sled(active?.sledId);
  host.agent.faults.lose(active?.id ?? '');
  await harness.client.runReconciler('watcher');
  await harness.shows(id, 'failed');
  await harness.rests(id);
  expect(await log({ operation_id: 'vmm_fail', subject: active?.id ?? '' })).toMatchObject([
    {
      actor_kind: 'system',
      actor_name: 'watcher',
      subject_kind: 'vmm',
      source_ip: '0.0.0.0',
      project_id: (await harness.record(id)).instance.projectId,
      request_uri: expect.stringMatching(/^temporal:.*watcher/),
      result: { kind: 'success' },
    },
  ]);
  await harness.client.runReconciler('auto-restart');
  await harness.shows(id, 'running');
  const restarts = () => log({ operation_id: 'auto_restart', subject: id });
  await waitUntil(async () => (await restarts()).length > 0, 'the restart is not on record');
  expect(await restarts()).toMatchObject([
    {
      actor_name: 'auto-restart',
      actor_kind: 'system',
      result: { kind: 'success' },
      saga_operation_id: expect.any(String),
    },
  ]);
  // Nobody's request is on record for it.
  expect(await log({ operation_id: 'instance_start', subject: id })).toHaveLength(1);

  const stray = randomUUID();
  await fetch(`${host.agent.url}/vmms/${stray}`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      instance_id: randomUUID(),
      vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
      vmm_spec: { name: 'stray', ncpus: 1, memory_bytes: 2 ** 26 },
      vmm_addr: `${host.agent.address.split(':')[0]}:12499`,
    }),
  });
  await harness.client.runReconciler('watcher');
  expect(await log({ operation_id: 'vmm_unregister', subject: stray })).toMatchObject([
    { actor_name: 'watcher', result: { kind: 'success' } },
  ]);
});

test('each migration of a drain', async () => {
  const id = await harness.running();
  const { here } = await harness.placed(id);
  await robot.drainSled(here.id);
  expect((await robot.waitForDrain(here.id)).state).not.toBe('running');
  expect(await log({ operation_id: 'sled_drain_begin', subject: here.id })).toMatchObject([{ actor_name: 'robot' }]);
  const moves = await log({ operation_id: 'drain_migrate', subject: id });
  expect(moves).toMatchObject([
    { actor_kind: 'system', actor_name: `drain of sled ${here.id}`, result: { kind: 'success' } },
  ]);
  expect(moves[0]?.saga_operation_id).not.toBeNull();
  await robot.setSledPolicy(here.id, 'provisionable');
});

test('the official Oxide client reads the log, page by page in both orders, between two times', async () => {
  const { methods: oxide } = new Api({ host: harness.stack.apiUrl });
  const read = async (sortBy: 'time_and_id_ascending' | 'time_and_id_descending', query = {}) => {
    const ids: string[] = [];
    for (let pageToken: string | null = null; ; ) {
      const page: Awaited<ReturnType<typeof oxide.auditLogList>> = await oxide.auditLogList({
        query: { limit: 3, sortBy, pageToken, ...query },
      });
      if (page.type !== 'success') throw new Error(JSON.stringify(page));
      for (const entry of page.data.items) {
        expect(entry.timeCompleted).toBeInstanceOf(Date);
        ids.push(entry.id);
      }
      pageToken = page.data.nextPage ?? null;
      if (pageToken === null) return ids;
    }
  };
  const up = await read('time_and_id_ascending');
  expect(up.length).toBeGreaterThan(8);
  expect(new Set(up).size).toBe(up.length);
  expect(await read('time_and_id_descending')).toEqual([...up].reverse());
  const entries = await log({});
  const [, second, third] = entries.map((entry) => entry.time_completed);
  const between = await read('time_and_id_ascending', {
    startTime: new Date(second ?? ''),
    endTime: new Date(third ?? ''),
  });
  expect(between).toContain(up[1]);
  expect(between).not.toContain(up[4]);
});

test('old records are deleted by the reaper, which says how many; one whose end nobody wrote is closed as unknown', async () => {
  const { db } = harness.database;
  const plant = async (age: string, open: boolean) => {
    const id = randomUUID();
    await writeAudit(db, {
      id,
      elapsedMs: 0,
      actor: 'local',
      actorName: 'planted',
      actorId: null,
      sourceIp: null,
      userAgent: null,
      requestId: id,
      requestUri: '/',
      operation: 'planted',
      subjectKind: null,
      subject: null,
      projectId: null,
      sagaOperationId: null,
      outcome: open ? null : { result: 'success', httpStatus: 200 },
    });
    await db.execute(sql`
      UPDATE audit_log SET time_started = now() - ${age}::interval,
        time_completed = CASE WHEN time_completed IS NULL THEN NULL ELSE now() - ${age}::interval END WHERE id = ${id}`);
    return id;
  };
  await plant('91 days', false);
  await plant('400 days', false);
  const young = await plant('89 days', false);
  const forgotten = await plant('25 hours', true);
  const going = await plant('1 hour', true);
  const pass = await harness.client.runReconciler('reaper');
  expect(pass.found).toMatchObject({ old_records: 2, open_records: 1 });
  expect(pass.summary).toMatch(/deleted 2 old audit records, closed 1 audit record whose end is unknown/);
  const left = await log({ operation_id: 'planted' });
  expect(left.map((entry) => [entry.id, entry.result.kind]).sort()).toEqual(
    [
      [young, 'success'],
      [forgotten, 'unknown'],
    ].sort(),
  );
  expect(left.map((entry) => entry.id)).not.toContain(going);
});

test('the command shows it aligned, filtered, or as JSON', async () => {
  const mooring = (...args: string[]) => runCommand(['audit', '--api-url', harness.stack.apiUrl, ...args]);
  const all = await mooring('--limit', '500');
  expect([all.code, all.stderr]).toEqual([0, '']);
  expect(all.stdout).toMatch(/COMPLETED +WHO +FROM +WHAT +ON +RESULT/);
  expect(all.stdout).toMatch(/robot +127\.0\.0\.1 +instance_start +instance [0-9a-f-]{36} +success/);
  expect(all.stdout).toMatch(/watcher +- +vmm_fail +vmm [0-9a-f-]{36} +success/);
  const failed = JSON.parse((await mooring('--failed', '--since', '1h', '--json')).stdout) as AuditLogEntry[];
  expect(failed.length).toBeGreaterThan(0);
  for (const entry of failed) expect(entry.result.kind).not.toBe('success');
  expect(JSON.parse((await mooring('--since', '2h', '--until', '1h', '--json')).stdout)).toEqual([]);
  expect((await mooring('--since', 'yesterday')).stderr).toMatch(/neither a span of time \(2h\) nor a time/);
});
