/** A call that is sent again under its key, after its answer was lost, is the same operation. */
import { randomUUID } from 'node:crypto';
import { connect, createServer, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { MooringClient } from '../../client/mooring-client.ts';
import { forgetOldKeys } from '../../db/transactions/forget-keys.ts';
import { giveKeyBack } from '../../db/transactions/give-key-back.ts';
import { settleKey } from '../../db/transactions/settle-key.ts';
import { takeKey } from '../../db/transactions/take-key.ts';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
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
  expect([error.status, error.errorCode, error.message]).toEqual([
    422,
    'IdempotencyKeyReused',
    expect.stringContaining('Idempotency-Key'),
  ]);
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

/** Sends a request as it is, with a key. */
async function send(method: string, path: string, key: string, body?: unknown) {
  const response = await fetch(harness.stack.apiUrl + path, {
    method,
    headers: {
      'idempotency-key': key,
      prefer: 'wait=60',
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  const location = response.headers.get('location');
  return { status: response.status, location, body: text === '' ? null : JSON.parse(text) };
}

const NEW = { hostname: 'web', description: '', ncpus: 1, memory: 2 ** 30, start: false, auto_restart_policy: 'never' };

/** What a change must leave as it is. */
async function stored(): Promise<unknown> {
  const { rows } = await harness.database.pool.query(
    `SELECT (SELECT json_agg(i ORDER BY id) FROM instance i) AS instances, (SELECT json_agg(o ORDER BY id) FROM operation o) AS
       operations, (SELECT json_agg(v ORDER BY id) FROM vmm v) AS vmms, (SELECT json_agg(p ORDER BY id) FROM project p) AS projects`,
  );
  return rows;
}

test('a key names one request: with anything else it is refused, nothing is done, and the first answer is kept', async () => {
  const other = await harness.create();
  const running = await harness.running();
  const { there } = await harness.placed(running);
  const { here } = await harness.placed(running);
  const third = harness.stack.sleds.find((sled) => sled.id !== there.id && sled.id !== here.id);
  const firsts = {
    create: { path: '/v1/instances?project=default', body: { ...NEW, name: 'keyed-one' } },
    start: { path: `/v1/instances/${await harness.create()}/start`, body: undefined },
    migrate: { path: `/v1/instances/${running}/migrate`, body: { dst_sled_id: there.id } },
  } as const;
  await harness.client.createProject({ name: 'elsewhere', description: '' });
  for (const [call, first] of Object.entries(firsts)) {
    const key = randomUUID();
    const answered = await send('POST', first.path, key, first.body);
    expect([call, answered.status]).toEqual([call, call === 'create' ? 201 : 202]);
    if (call === 'migrate') {
      await harness.shows(running, 'running');
      await harness.rests(running);
    }
    if (call === 'start') await harness.shows(firsts.start.path.split('/')[3] ?? '', 'running');
    // Every keyed call, and some that take none, each with what differs from the first in one thing.
    const others: [string, string, unknown?][] = [
      ...Object.entries({
        name: 'keyed-two',
        ncpus: 2,
        memory: 2 ** 31,
        description: 'x',
        hostname: 'y',
        start: true,
      }).map(([field, value]): [string, string, unknown] => [
        'POST',
        '/v1/instances?project=default',
        { ...firsts.create.body, [field]: value },
      ]),
      ['POST', '/v1/instances?project=elsewhere', firsts.create.body],
      ['POST', `/v1/instances/${other}/start`],
      ['POST', `/v1/instances/${other}/start`, { force: true }],
      ['POST', `/v1/instances/${running}/migrate`, { dst_sled_id: third?.id }],
      ['POST', `/v1/instances/${running}/migrate`, { dst_sled_id: randomUUID() }],
      ['POST', `/v1/instances/${other}/migrate`, { dst_sled_id: there.id }],
      ['POST', `/v1/instances/${running}/stop`],
      ['POST', `/v1/instances/${running}/reboot`],
      ['PUT', `/v1/instances/${other}`, { description: 'changed' }],
      ['DELETE', `/v1/instances/${other}`],
      ['POST', '/v1/projects', { name: 'by-key', description: '' }],
      ...Object.entries(firsts)
        .filter(([name]) => name !== call)
        .map(([, { path, body }]): [string, string, unknown] => ['POST', path, body]),
    ];
    const before = await stored();
    for (const [method, path, body] of others) {
      if (
        call === 'migrate' &&
        path === firsts.migrate.path &&
        (body as { dst_sled_id?: string })?.dst_sled_id === there.id
      )
        continue;
      const refusal = await send(method, path, key, body);
      expect([call, method, path, body, refusal.status, refusal.body?.error_code]).toEqual([
        call,
        method,
        path,
        body,
        422,
        'IdempotencyKeyReused',
      ]);
    }
    expect(await stored()).toEqual(before);
    const again = await send('POST', first.path, key, first.body);
    expect([call, again.status, again.location, again.body.id]).toEqual([
      call,
      answered.status,
      answered.location,
      answered.body.id,
    ]);
  }
});

test('what a request means is what is compared: names and ids, renames, defaults and the order of fields', async () => {
  const project = await harness.client.getProject('default');
  const id = await harness.create('spelled');
  const key = randomUUID();
  const first = await send('POST', '/v1/instances/spelled/start?project=default', key);
  expect(first.status).toBe(202);
  for (const path of [`/v1/instances/${id}/start`, `/v1/instances/spelled/start?project=${project.id}`])
    expect((await send('POST', path, key, {})).location).toBe(first.location);
  await harness.shows(id, 'running');
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.rests(id);
  await harness.client.updateInstance(id, { name: 'renamed' });
  expect((await send('POST', '/v1/instances/renamed/start?project=default', key)).location).toBe(first.location);
  // Another instance got its name.
  await harness.create('spelled');
  expect((await send('POST', '/v1/instances/spelled/start?project=default', key)).status).toBe(422);

  const creating = randomUUID();
  const made = await send('POST', '/v1/instances?project=default', creating, { ...NEW, name: 'ordered' });
  const turned = Object.fromEntries(Object.entries({ ...NEW, restart_priority: 'normal', name: 'ordered' }).reverse());
  const again = await send('POST', `/v1/instances?project=${project.id}`, creating, turned);
  expect([again.status, again.body.id]).toEqual([201, made.body.id]);
});

/** What a request is refused with, how another one with its key differs, and what takes the hindrance away. */
interface Refused {
  readonly status: number;
  readonly path: string;
  readonly body: unknown;
  readonly others: readonly (readonly [method: string, path: string, body?: unknown])[];
  readonly clear: () => Promise<unknown>;
  readonly afterwards: number;
}

test('the refusal of the first is kept as well: its key names it, and it gets it again', async () => {
  const create = '/v1/instances?project=default';
  const taken = await harness.create('taken');
  const stopped = await harness.create('not-running');
  const [here] = harness.stack.sleds;
  const migrate = `/v1/instances/${stopped}/migrate`;
  const refused: Refused[] = [
    {
      status: 400,
      path: create,
      body: { ...NEW, name: 'taken' },
      others: [
        ['POST', create, { ...NEW, name: 'free' }],
        ['POST', create, { ...NEW, name: 'taken', ncpus: 2 }],
        ['POST', `/v1/instances/${taken}/start`],
        ['POST', '/v1/projects', { name: 'after-a-refusal', description: '' }],
        ['DELETE', `/v1/instances/${stopped}`],
      ],
      clear: () => harness.client.updateInstance(taken, { name: 'taken-no-more' }),
      afterwards: 201,
    },
    {
      status: 404,
      path: create,
      body: { ...NEW, name: 'grouped', anti_affinity_groups: ['a-group-to-come'] },
      others: [
        ['POST', create, { ...NEW, name: 'grouped' }],
        ['POST', migrate, { dst_sled_id: here?.id }],
      ],
      clear: () =>
        send('POST', '/v1/anti-affinity-groups?project=default', randomUUID(), {
          ...{ name: 'a-group-to-come', description: '', policy: 'allow', failure_domain: 'sled' },
        }),
      afterwards: 201,
    },
    {
      status: 400,
      path: migrate,
      body: { dst_sled_id: here?.id },
      others: [
        ['POST', migrate, { dst_sled_id: randomUUID() }],
        ['POST', `/v1/instances/${stopped}/start`],
        ['POST', create, { ...NEW, name: 'free' }],
      ],
      clear: async () => {
        // Elsewhere: nothing migrates to where it is.
        await harness.client.setSledPolicy(here?.id ?? '', 'non_provisionable');
        await harness.client.startInstance(stopped);
        await harness.shows(stopped, 'running');
        await harness.client.setSledPolicy(here?.id ?? '', 'provisionable');
      },
      afterwards: 202,
    },
  ];
  for (const { status, path, body, others, clear, afterwards } of refused) {
    const key = randomUUID();
    const first = await send('POST', path, key, body);
    expect([path, body, first.status]).toEqual([path, body, status]);
    const before = await stored();
    const sayNoOthers = async () => {
      for (const [method, to, other] of others) {
        const answer = await send(method, to, key, other);
        expect([method, to, other, answer.status]).toEqual([method, to, other, 422]);
      }
    };
    await sayNoOthers();
    expect(await stored()).toEqual(before);
    await clear();
    const again = await Promise.all([1, 2, 3].map(() => send('POST', path, key, body)));
    for (const answer of again)
      expect([path, answer.status, answer.body.error_code, answer.body.message]).toEqual([
        ...[path, status, first.body.error_code, first.body.message],
      ]);
    await sayNoOthers();
    expect((await send('POST', path, randomUUID(), body)).status).toBe(afterwards);
  }
});

test('of several at once under one key that differ, all that is not the one that counts is refused as another request', async () => {
  await harness.create('wanted');
  for (let round = 1; round <= 5; round++) {
    const key = randomUUID();
    const answers = await Promise.all(
      [1, 2, 3, 4].map((ncpus) =>
        send('POST', '/v1/instances?project=default', key, { ...NEW, name: 'wanted', ncpus }),
      ),
    );
    // Each is refused for its name, but one alone has the key.
    const again = await Promise.all(
      [1, 2, 3, 4].map((ncpus) =>
        send('POST', '/v1/instances?project=default', key, { ...NEW, name: 'wanted', ncpus }),
      ),
    );
    expect(answers.every(({ status }) => status === 400 || status === 422)).toBe(true);
    expect(again.map(({ status }) => status).sort()).toEqual([400, 422, 422, 422]);
  }
});

test('a repeated create begins its start under the name that the instance has by now', async () => {
  const key = randomUUID();
  const body = { ...NEW, name: 'before', start: true };
  harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
  const made = await send('POST', '/v1/instances?project=default', key, body);
  harness.everywhere(({ agent }) => agent.faults.clear());
  const { id } = made.body;
  // As if the API had ended before it began the start: under a key by which no run was begun.
  const lost = randomUUID();
  await harness.database.pool.query(
    'UPDATE idempotency_key SET key = $1, operation_id = NULL, taken_until = NULL WHERE key = $2',
    [lost, key],
  );
  await harness.rests(id);
  await harness.client.updateInstance(id, { name: 'after' });
  expect((await send('POST', '/v1/instances?project=default', lost, body)).body).toMatchObject({ id, name: 'after' });
  expect(await runs(id)).toBe(2);
  const { searchAttributes } = await harness.temporal.workflow.getHandle(workflowIds.start(id)).describe();
  expect(searchAttributes[SEARCH_ATTRIBUTES.instance]).toEqual(['after']);
});

test('the same request twice at once is one attempt, also where the first is refused in between', async () => {
  for (let round = 1; round <= 5; round++) {
    const id = await harness.create();
    const key = randomUUID();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
    const path = `/v1/instances/${id}/start`;
    const answers = await Promise.all([1, 2, 3].map(() => send('POST', path, key)));
    harness.everywhere(({ agent }) => agent.faults.clear());
    // Their messages name one VMM: it is one attempt.
    expect(new Set(answers.map((answer) => answer.body.message)).size).toBe(1);
    expect(answers.map((answer) => answer.status)).toEqual([503, 503, 503]);
    const { rows } = await harness.database.pool.query(
      'SELECT count(*)::int AS n FROM operation WHERE instance_id = $1',
      [id],
    );
    expect(rows[0].n).toBe(1);
  }
});

test('while one sending is about to begin, another waits for it; what began nothing gives its turn up', async () => {
  const id = await harness.create();
  const { db } = harness.database;
  const [first, second] = [randomUUID(), randomUUID()].map((sending) => ({
    ...{ value: randomUUID(), call: 'start' as const, digest: 'ab'.repeat(32), sending },
  }));
  if (first === undefined || second === undefined) throw new Error('unreachable');
  const twin = { ...second, value: first.value };
  expect(await takeKey(db, first, id)).toMatchObject({ fresh: true, mine: true, operationId: null });
  expect(await takeKey(db, twin, id)).toMatchObject({ fresh: false, mine: false });
  expect(await takeKey(db, first, id)).toMatchObject({ fresh: false, mine: true });
  await giveKeyBack(db, twin);
  expect(await takeKey(db, twin, id)).toMatchObject({ mine: false });
  await giveKeyBack(db, first);
  expect(await takeKey(db, twin, id)).toMatchObject({ fresh: false, mine: true });
  expect(await takeKey(db, first, id)).toMatchObject({ mine: false });
  // One that died has its turn for a while only.
  await harness.database.pool.query(`UPDATE idempotency_key SET taken_until = now() - interval '1 ms' WHERE key = $1`, [
    first.value,
  ]);
  expect(await takeKey(db, first, id)).toMatchObject({ mine: true });
  await expect(takeKey(db, { ...first, digest: 'cd'.repeat(32) }, id)).rejects.toMatchObject({ status: 422 });
  await settleKey(db, first.value, randomUUID());
  expect(await takeKey(db, twin, id)).toMatchObject({ mine: false, operationId: expect.any(String) });
});
