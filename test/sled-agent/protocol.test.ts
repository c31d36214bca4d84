/** The sled agent's side of the protocol (section 7 of the design), against a control plane that only listens. */
import { randomInt, randomUUID } from 'node:crypto';
import { fastify } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { type SledVmmState, sledVmmState } from '../../wire/sled-protocol.ts';
import { freePort, waitUntil } from '../../worker/child-process.ts';

const ip = `127.${randomInt(1, 255)}.${randomInt(0, 255)}.1`;
const heard: { vmmId: string; report: SledVmmState }[] = [];
let failing = 0;
const controlPlane = fastify();
let agent: SledAgentHandle;

beforeAll(async () => {
  controlPlane.put('/vmms/:id', async (request, reply) => {
    if (failing > 0) {
      failing -= 1;
      return reply.status(503).send({});
    }
    heard.push({ vmmId: (request.params as { id: string }).id, report: sledVmmState.parse(request.body) });
    return reply.status(204).send();
  });
  const controlPlaneUrl = await controlPlane.listen({ host: '127.0.0.1', port: 0 });
  agent = await startSledAgent({
    name: 's',
    listen: `${ip}:0`,
    controlPlaneUrl,
    threads: 4,
    memoryBytes: 2 ** 33,
    transitionMs: 5,
  });
});
afterAll(async () => {
  await agent.stop();
  await controlPlane.close();
});

interface Answer {
  status: number;
  body: {
    error_code?: string;
    message?: string;
    updated_runtime?: SledVmmState | null;
    vmm_state?: SledVmmState['vmm_state'];
  };
}

async function call(method: string, path: string, body?: unknown): Promise<Answer> {
  const response = await fetch(agent.url + path, {
    method,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  return { status: response.status, body: (await response.json()) as Answer['body'] };
}

async function register(vmmId: string, changes: { instance_id?: string; ncpus?: number; migration_id?: string } = {}) {
  const { ncpus = 1, ...rest } = changes;
  return call('PUT', `/vmms/${vmmId}`, {
    instance_id: '00000000-0000-4000-8000-0000000000aa',
    vmm_runtime: {
      state: changes.migration_id === undefined ? 'starting' : 'migrating',
      gen: 2,
      time_updated: new Date().toISOString(),
    },
    vmm_spec: { name: 'web', ncpus, memory_bytes: 2 ** 30 },
    vmm_addr: `${ip}:${await freePort(ip)}`,
    ...rest,
  });
}
const tell = (vmmId: string, type: string, value?: unknown) =>
  call('PUT', `/vmms/${vmmId}/state`, { state: { type, ...(value === undefined ? {} : { value }) } });
const states = (vmmId: string) => heard.filter((one) => one.vmmId === vmmId).map((one) => one.report.vmm_state.state);

test('register starts at the generation it is given, and the same once more gives the state as it is', async () => {
  const id = randomUUID();
  const first = await register(id);
  expect(first).toMatchObject({ status: 200, body: { vmm_state: { state: 'starting', gen: 2 } } });
  expect((await register(id)).body.vmm_state).toEqual(first.body.vmm_state);
  expect((await register(id, { instance_id: randomUUID() })).status).toBe(409);
  expect((await call('DELETE', `/vmms/${id}`)).body.updated_runtime?.vmm_state).toMatchObject({
    state: 'failed',
    gen: 3,
  });
});

test('a guest runs, stops, is reported in order although the control plane was away, and is then unknown', async () => {
  const id = randomUUID();
  failing = 3;
  await register(id);
  expect((await tell(id, 'running')).status).toBe(200);
  expect((await tell(id, 'running')).status).toBe(200);
  await waitUntil(() => states(id).includes('running'), 'it never ran');
  await tell(id, 'stopped');
  await waitUntil(() => states(id).includes('destroyed'), 'it never ended');
  expect(states(id)).toEqual(['starting', 'running', 'stopping', 'stopped', 'destroyed']);
  await waitUntil(async () => (await call('GET', `/vmms/${id}/state`)).status === 404, 'it was never forgotten');
  expect((await call('GET', `/vmms/${id}/state`)).body.error_code).toBe('NO_SUCH_INSTANCE');
});

test('an unregistered id stays dead, known before or not', async () => {
  const id = randomUUID();
  expect((await call('DELETE', `/vmms/${id}`)).body).toEqual({ updated_runtime: null });
  expect(await register(id)).toMatchObject({ status: 409, body: { error_code: 'VMM_UNREGISTERED' } });
});

test('what does not fit is refused, and so is a bad body, by the name of its field', async () => {
  expect((await register(randomUUID(), { ncpus: 5 })).status).toBe(409);
  const bad = await call('PUT', `/vmms/${randomUUID()}/state`, { state: { type: 'dance' } });
  expect(bad.status).toBe(400);
  expect(String(bad.body.message)).toContain('state');
});

test('a migration moves the guest with its count, both sides report, and it never executes twice', async () => {
  const [source, target, migrationId] = [randomUUID(), randomUUID(), randomUUID()];
  const sourceAddress = `${ip}:${await freePort(ip)}`;
  await call('PUT', `/vmms/${source}`, {
    instance_id: '00000000-0000-4000-8000-0000000000bb',
    vmm_runtime: { state: 'starting', gen: 2, time_updated: new Date().toISOString() },
    vmm_spec: { name: 'web', ncpus: 1, memory_bytes: 2 ** 30 },
    vmm_addr: sourceAddress,
  });
  await tell(source, 'running');
  await waitUntil(() => (agent.hypervisor.count(source) ?? 0) > 1, 'it never counted');
  await register(target, { instance_id: '00000000-0000-4000-8000-0000000000bb', migration_id: migrationId });
  const before = agent.hypervisor.count(source) ?? 0;
  expect((await tell(target, 'migration_target', { src_vmm_addr: sourceAddress })).status).toBe(200);
  expect((await tell(target, 'migration_target', { src_vmm_addr: sourceAddress })).status).toBe(200);
  const side = (id: string, which: 'migration_in' | 'migration_out') =>
    heard.filter((one) => one.vmmId === id).at(-1)?.report[which];
  await waitUntil(
    () => side(target, 'migration_in')?.state === 'completed' && side(source, 'migration_out')?.state === 'completed',
    'it never moved',
  );
  expect(agent.hypervisor.count(target)).toBeGreaterThanOrEqual(before);
  await waitUntil(() => states(source).includes('destroyed'), 'the source never ended');
  let executing = 0;
  for (const entry of agent.faults.guestLog().filter((one) => one.vmm_id === source || one.vmm_id === target)) {
    executing += entry.event === 'began' ? 1 : -1;
    expect(executing).toBeLessThanOrEqual(1);
  }
  expect(executing).toBe(1);
});

test('a migration from where nobody listens fails, and the agent goes on', async () => {
  const target = randomUUID();
  await register(target, { migration_id: randomUUID() });
  const nobody = `${ip}:${await freePort(ip)}`;
  expect((await tell(target, 'migration_target', { src_vmm_addr: nobody })).status).toBe(200);
  await waitUntil(() => states(target).includes('failed'), 'it never failed');
  expect(heard.filter((one) => one.vmmId === target).at(-1)?.report.migration_in?.state).toBe('failed');
  expect((await call('GET', '/vmms')).status).toBe(200);
});
