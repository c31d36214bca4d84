/** A Temporal server that holds its connections and answers nothing, as one does on a machine that has no time for it. */
import { randomUUID } from 'node:crypto';
import { Client } from '@temporalio/client';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { describeError } from '../../api/errors.ts';
import { type OperationRequest, Operations } from '../../api/operations.ts';
import { type RunningApi, startApi } from '../../api/server.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { scheduleOf } from '../../model/workflow-names.ts';
import { createLog } from '../../platform/telemetry/log.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { startTemporalServer, type TemporalServer } from '../../stack/temporal-server.ts';
import { type ClientConnection, connectClient, plainTemporal } from '../../temporal/connection.ts';
import { findDeployedInstallations, promoteBuild, readBuilds, readPolledBuilds } from '../../temporal/deployment.ts';
import { readPolledQueues } from '../../temporal/pollers.ts';
import { RunLister } from '../../temporal/run-lister.ts';
import { ensureSchedules, readLoops } from '../../temporal/schedules.ts';
import { WorkflowStarter } from '../../temporal/workflow-starter.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { unwindError } from '../support/saga-steps.ts';

/** The deadline of every call that sets none of its own, in milliseconds. */
const CALL_MS = 500;

let server: TemporalServer;
let connection: ClientConnection;
let database: TestDatabase;
let api: RunningApi;
beforeAll(async () => {
  database = await startTestDatabase();
  server = await startTemporalServer({ binary: (await findTemporalBinary()).path, uiPort: null });
  connection = await connectClient({ address: server.address }, CALL_MS);
  api = await startApi({
    databaseUrl: database.url,
    temporal: plainTemporal(server.address),
    host: '127.0.0.1',
    port: 0,
    authentication: 'open',
    plainSleds: true,
    log: createLog('test', 'silent'),
  });
  process.kill(server.pid, 'SIGSTOP');
});
afterAll(async () => {
  process.kill(server.pid, 'SIGCONT');
  await api?.stop();
  // A close waits for the answer of a frozen server no longer than the calls do.
  await connection?.close();
  await server?.stop();
  await database?.stop();
});

test('a call gets 503 and does not wait for ever, whatever it asks of Temporal', async () => {
  const client = new Client({ connection: connection.connection });
  const workflows = new WorkflowStarter(client);
  const operations = new Operations(client, database.db);
  const instanceId = randomUUID();
  const request: OperationRequest = {
    kind: 'start',
    input: { instanceId, reason: 'user' },
    summary: '',
    waitMs: 0,
  };
  const calls = [
    () => workflows.signalUpdate(instanceId),
    () => workflows.carryStop(instanceId),
    () => workflows.isOpen(`instance-start/${instanceId}`, randomUUID()),
    () => operations.run(request),
    () => operations.joinOpen(request),
  ];
  const errors = await Promise.all(calls.map((call) => call().catch((reason: unknown) => reason)));
  for (const error of errors) {
    expect(error).toBeInstanceOf(Error);
    expect(describeError(error)).toMatchObject({ status: 503, code: 'ServiceUnavailable' });
  }
});

test('every call to Temporal has a deadline, whoever makes it', async () => {
  const client = new Client({ connection: connection.connection });
  const id = randomUUID();
  const starter = new WorkflowStarter(client);
  const watcher = scheduleOf('an-installation', 'watcher');
  const methods = Object.getOwnPropertyNames(WorkflowStarter.prototype).filter((name) => name !== 'constructor');
  const argumentsOf: Readonly<Record<string, readonly unknown[]>> = { findOpenSagas: [1_000] };
  const calls: Record<string, () => Promise<unknown>> = {
    ...Object.fromEntries(
      methods.map((name) => [
        name,
        () => Reflect.get(starter, name).apply(starter, argumentsOf[name] ?? [id, 'a name']) as Promise<unknown>,
      ]),
    ),
    describe: () => client.workflow.getHandle(id).describe(),
    signal: () => client.workflow.getHandle(id).signal('stopDrain'),
    list: async () => {
      for await (const _ of client.workflow.list());
    },
    ensureSchedules: () => ensureSchedules(client, 'an-installation'),
    pauseSchedule: () => client.schedule.getHandle(watcher).pause(),
    triggerSchedule: () => client.schedule.getHandle(watcher).trigger(),
    readLoops: () => readLoops(client, 'an-installation'),
    readPolledQueues: () => readPolledQueues(client, 'an-installation'),
    readPolledBuilds: () => readPolledBuilds(client, 'an-installation'),
    findDeployedInstallations: () => findDeployedInstallations(client),
    listRuns: () => new RunLister(client).list([id], 1),
    readBuilds: () => readBuilds(client, 'an-installation'),
    promoteBuild: () => promoteBuild(client, 'an-installation', 'a-build'),
  };
  expect(Object.keys(calls).length).toBeGreaterThan(12);
  const failed = Object.entries(calls).map(async ([name, call]) => {
    const error: unknown = await call().catch((reason: unknown) => reason);
    expect(error, name).toBeInstanceOf(Error);
    expect(describeError(error), name).toMatchObject({ status: 503 });
  });
  await Promise.all(failed);
});

test('who asks not to wait is answered before who waits as long as he may, whatever he begins', async () => {
  const instance = await database.addInstance(await database.addProject());
  const post = (path: string, body: unknown, prefer: string) =>
    fetch(api.url + path, {
      method: 'POST',
      headers: { prefer, ...(body === null ? {} : { 'content-type': 'application/json' }) },
      ...(body === null ? {} : { body: JSON.stringify(body) }),
    });
  expect((await post('/v1/projects', { name: 'hurry', description: '' }, 'wait=0')).status).toBe(201);
  const named = (name: string) => ({ name, hostname: name, description: '', ncpus: 1, memory: 1024 ** 3, start: true });
  const begun: readonly (readonly [string, (which: string) => readonly [path: string, body: unknown], number])[] = [
    ['a start', () => [`/v1/instances/${instance}/start`, null], 503],
    ['a create', (which) => ['/v1/instances?project=hurry', named(`web-${which}`)], 201],
    ['a pass of a loop', () => ['/v1/system/reconcilers/reaper/run', null], 503],
  ];
  await Promise.all(
    begun.map(async ([name, call, status]) => {
      const order: string[] = [];
      const ask = async (which: string, prefer: string) => {
        const answer = await post(...call(which), prefer);
        order.push(which);
        return answer.status;
      };
      const statuses = await Promise.all([ask('patient', 'wait=60'), ask('hasty', 'wait=0')]);
      expect([name, order, statuses]).toEqual([name, ['hasty', 'patient'], [status, status]]);
    }),
  );
});

test('what PostgreSQL has taken is answered as a success: a delete over a leftover, a create, an expunge', async () => {
  const { db } = database;
  const sledId = await database.addSled();
  const instanceId = await database.addInstance(await database.addProject());
  const attempt = {
    kind: 'start' as const,
    instanceId,
    vmmId: randomUUID(),
    operationId: randomUUID(),
    workflowId: 'w',
  };
  await claimStart(db, { ...attempt, reason: 'user' });
  await beginUnwind(db, { ...attempt, spareRunning: false });
  await finishUnwind(db, { ...attempt, confirmed: true, neverCommanded: true, error: unwindError() });
  const send = async (method: string, path: string, body?: unknown) =>
    (
      await fetch(api.url + path, {
        method,
        headers: { prefer: 'wait=1', ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      })
    ).status;
  const other = await database.addInstance(await database.addProject());
  const running = { instanceId: other, vmmId: randomUUID(), operationId: randomUUID(), workflowId: 'w' };
  await claimStart(db, { ...running, reason: 'user' });

  const removed = async () => {
    expect(await send('DELETE', `/v1/instances/${instanceId}`)).toBe(204);
    expect(await send('GET', `/v1/instances/${instanceId}`)).toBe(404);
  };
  const created = async () => {
    expect(await send('POST', '/v1/projects', { name: 'cold', description: '' })).toBe(201);
    const web = { name: 'web', hostname: 'web', description: '', ncpus: 1, memory: 1024 ** 3, start: true };
    expect(await send('POST', '/v1/instances?project=cold', web)).toBe(201);
  };
  const expunged = async () => {
    const off = { sled_powered_off: true };
    expect(await send('POST', `/v1/system/hardware/sleds/${sledId}/expunge`, off)).toBe(200);
  };
  await Promise.all([removed(), created(), expunged()]);
});
