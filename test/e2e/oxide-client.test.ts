import Api from '@oxide/api';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Harness, startHarness } from '../support/harness.ts';

let harness: Harness;
beforeAll(async () => {
  harness = await startHarness();
});
afterAll(() => harness?.close());

test('the official Oxide client drives the API unchanged', async () => {
  const { methods: oxide } = new Api({ host: harness.stack.apiUrl });
  const project = await oxide.projectCreate({ body: { name: 'oxide', description: 'by its client' } });
  expect(project.type).toBe('success');
  const created = await oxide.instanceCreate({
    query: { project: 'oxide' },
    body: { name: 'web', description: '', hostname: 'web', ncpus: 1, memory: 1024 ** 3, start: false },
  });
  if (created.type !== 'success') throw new Error(JSON.stringify(created));
  expect(created.response.status).toBe(201);
  expect(created.data.runState).toBe('stopped');
  expect(created.data.timeCreated).toBeInstanceOf(Date);

  const path = { instance: created.data.id };
  const started = await oxide.instanceStart({ path });
  expect(started.response.status).toBe(202);
  await harness.shows(created.data.id, 'running');
  const { here } = await harness.placed(created.data.id);
  expect((await harness.client.getSled(here.id)).vmm_count).toBe(1);
  const byName = await oxide.instanceView({ path: { instance: 'web' }, query: { project: 'oxide' } });
  expect(byName.type === 'success' && byName.data.runState).toBe('running');
  // Simulated VMs have none.
  const noConsole = await oxide.instanceSerialConsole({ path, query: { fromStart: 0 } });
  expect(noConsole.response.status).toBe(409);
  expect((await oxide.instanceSerialConsole({ path, query: { fromStart: 0, mostRecent: 5 } })).response.status).toBe(
    400,
  );
  expect((await oxide.instanceReboot({ path })).response.status).toBe(202);
  await harness.shows(created.data.id, 'running');
  expect((await oxide.instanceStop({ path })).response.status).toBe(202);
  await harness.shows(created.data.id, 'stopped');

  await oxide.instanceCreate({
    query: { project: 'oxide' },
    body: { name: 'db', description: '', hostname: 'db', ncpus: 1, memory: 1024 ** 3, start: false },
  });
  const first = await oxide.instanceList({ query: { project: 'oxide', limit: 1 } });
  if (first.type !== 'success') throw new Error(JSON.stringify(first));
  expect(first.data.items.map((one) => one.name)).toEqual(['db']);
  const second = await oxide.instanceList({
    query: { project: 'oxide', limit: 1, pageToken: first.data.nextPage ?? null },
  });
  expect(second.type === 'success' && second.data.items.map((one) => one.name)).toEqual(['web']);

  const sleds = await oxide.sledList({});
  expect(sleds.type === 'success' && sleds.data.items).toHaveLength(3);
  const missing = await oxide.instanceView({ path: { instance: 'nobody' }, query: { project: 'oxide' } });
  expect(missing.type === 'error' && missing.data.errorCode).toBe('NotFound');
  expect((await oxide.instanceDelete({ path })).response.status).toBe(204);
  expect((await oxide.instanceView({ path })).response.status).toBe(404);
});
