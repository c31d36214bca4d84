/** A call that is sent again under its key, after its answer was lost, is the same operation. */
import { randomUUID } from 'node:crypto';
import { connect, createServer, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { forgetOldKeys } from '../../db/transactions/forget-keys.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ reconcileEveryMs: 0, registerTimeoutMs: 1_500 });
});
afterEach(() => harness.everywhere(({ agent }) => agent.faults.clear()));
afterAll(() => harness?.close());

async function runs(id: string): Promise<number> {
  let count = 0;
  for await (const run of harness.temporal.workflow.list({ query: `WorkflowId = "${workflowIds.start(id)}"` }))
    count += run ? 1 : 0;
  return count;
}

test('a start that failed fails again under its key, with the same operation; a new key begins anew', async () => {
  const id = await harness.create();
  const idempotencyKey = randomUUID();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  const first = await refused(harness.client.startInstance(id, { idempotencyKey }));
  harness.everywhere(({ agent }) => agent.faults.clear());
  const again = await refused(harness.client.startInstance(id, { idempotencyKey }));
  expect([again.status, again.message]).toEqual([first.status, first.message]);
  expect((await harness.record(id)).externalState).toBe('stopped');
  await harness.client.startInstance(id);
  await harness.shows(id, 'running');
});

test('a success is answered again, also when the instance has been stopped since', async () => {
  const id = await harness.create();
  const idempotencyKey = randomUUID();
  const first = await harness.client.startInstance(id, { idempotencyKey });
  await harness.shows(id, 'running');
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  const again = await harness.client.startInstance(id, { idempotencyKey });
  expect(again.operationId).toBe(first.operationId);
  expect(again.instance.run_state).toBe('stopped');
});

test('two calls at once under one key are one operation, and so is one that comes while it is open', async () => {
  const id = await harness.create();
  const idempotencyKey = randomUUID();
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 503 } }));
  const open = await harness.client.startInstance(id, { idempotencyKey, waitSeconds: 0 });
  harness.everywhere(({ agent }) => agent.faults.clear());
  const both = await Promise.all([1, 2].map(() => harness.client.startInstance(id, { idempotencyKey })));
  expect(both.map((one) => one.operationId)).toEqual([open.operationId, open.operationId]);
});

test('a create under one key makes one instance, also by two calls at once', async () => {
  const idempotencyKey = randomUUID();
  const create = () =>
    harness.client.createInstance(
      { name: 'once', hostname: 'once', description: '', ncpus: 1, memory: 2 ** 30 },
      { project: 'default', idempotencyKey },
    );
  const made = await Promise.all([create(), create(), create()]);
  expect(new Set([...made, await create()].map((one) => one.id)).size).toBe(1);
  expect(await runs(made[0]?.id ?? '')).toBe(1);
});

test('an API that ended between the start of a saga and its record: the run is found by its key', async () => {
  const id = await harness.create();
  const idempotencyKey = randomUUID();
  const first = await harness.client.startInstance(id, { idempotencyKey });
  await harness.database.pool.query('UPDATE idempotency_key SET operation_id = NULL WHERE key = $1', [idempotencyKey]);
  const again = await harness.client.startInstance(id, { idempotencyKey });
  expect(again.operationId).toBe(first.operationId);
});

test('a key of another call, and one that is no UUID, are refused by name', async () => {
  const [one, other] = [await harness.create(), await harness.create()];
  const idempotencyKey = randomUUID();
  await harness.client.startInstance(one, { idempotencyKey });
  const error = await refused(harness.client.startInstance(other, { idempotencyKey }));
  expect([error.status, error.message]).toEqual([400, expect.stringContaining('Idempotency-Key')]);
  expect((await harness.record(other)).externalState).toBe('stopped');
  expect((await refused(harness.client.startInstance(other, { idempotencyKey: 'again' }))).status).toBe(400);
});

test('the client sends a call again whose answer was lost, and it is done once', async () => {
  const id = await harness.create();
  const target = new URL(harness.stack.apiUrl);
  let lost = 0;
  const sockets = new Set<Socket>();
  // Passes everything on, and cuts the connection instead of giving the first two answers.
  const proxy = createServer((socket) => {
    const upstream = connect(Number(target.port), target.hostname);
    for (const one of [socket, upstream]) {
      sockets.add(one);
      one.on('error', () => {});
    }
    socket.pipe(upstream);
    upstream.once('data', (chunk) => {
      if (lost < 2) {
        lost += 1;
        socket.destroy();
        upstream.destroy();
        return;
      }
      socket.write(chunk);
      upstream.pipe(socket);
    });
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const address = proxy.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  try {
    const started = await new MooringClient({ url: `http://127.0.0.1:${port}` }).startInstance(id);
    expect(started.operationId).not.toBeNull();
    expect(lost).toBe(2);
    expect(await runs(id)).toBe(1);
  } finally {
    for (const socket of sockets) socket.destroy();
    proxy.close();
  }
});

test('old keys are forgotten, new ones kept', async () => {
  await harness.database.pool.query(
    `UPDATE idempotency_key SET time_created = now() - interval '8 days' WHERE call = 'create'`,
  );
  const before = await harness.database.pool.query('SELECT count(*)::int AS count FROM idempotency_key');
  const forgotten = await forgetOldKeys(harness.database.db, 7 * 24 * 3600 * 1000);
  const after = await harness.database.pool.query('SELECT count(*)::int AS count FROM idempotency_key');
  expect(forgotten).toBeGreaterThan(0);
  expect(after.rows[0].count).toBe(before.rows[0].count - forgotten);
});
