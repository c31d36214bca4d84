import Api, { type ApiResult } from '@oxide/api';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runCommand } from '../support/command.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

let harness: Harness;
let oxide: Api['methods'];
beforeAll(async () => {
  harness = await startHarness();
  oxide = new Api({ host: harness.stack.apiUrl }).methods;
});
afterAll(() => harness?.close());

const query = { project: 'default' };

function data<T>(result: ApiResult<T>): T {
  if (result.type !== 'success') throw new Error(JSON.stringify(result));
  return result.data;
}

/** The two kinds of group, by the official client's own methods. */
const KINDS = [
  {
    kind: 'affinity' as const,
    create: (body: Parameters<Api['methods']['affinityGroupCreate']>[0]['body']) =>
      oxide.affinityGroupCreate({ query, body }),
    list: (page: { limit?: number; pageToken?: string | null } = {}) =>
      oxide.affinityGroupList({ query: { ...query, ...page } }),
    view: (group: string) => oxide.affinityGroupView({ path: { affinityGroup: group }, query }),
    update: (group: string, body: { name?: string; description?: string }) =>
      oxide.affinityGroupUpdate({ path: { affinityGroup: group }, query, body }),
    drop: (group: string) => oxide.affinityGroupDelete({ path: { affinityGroup: group }, query }),
    members: (group: string, page: { limit?: number; pageToken?: string | null } = {}) =>
      oxide.affinityGroupMemberList({ path: { affinityGroup: group }, query: { ...query, ...page } }),
    member: (group: string, instance: string) =>
      oxide.affinityGroupMemberInstanceView({ path: { affinityGroup: group, instance }, query }),
    add: (group: string, instance: string) =>
      oxide.affinityGroupMemberInstanceAdd({ path: { affinityGroup: group, instance }, query }),
    remove: (group: string, instance: string) =>
      oxide.affinityGroupMemberInstanceDelete({ path: { affinityGroup: group, instance }, query }),
    of: (instance: string) => oxide.instanceAffinityGroupList({ path: { instance }, query }),
  },
  {
    kind: 'anti_affinity' as const,
    create: (body: Parameters<Api['methods']['antiAffinityGroupCreate']>[0]['body']) =>
      oxide.antiAffinityGroupCreate({ query, body }),
    list: (page: { limit?: number; pageToken?: string | null } = {}) =>
      oxide.antiAffinityGroupList({ query: { ...query, ...page } }),
    view: (group: string) => oxide.antiAffinityGroupView({ path: { antiAffinityGroup: group }, query }),
    update: (group: string, body: { name?: string; description?: string }) =>
      oxide.antiAffinityGroupUpdate({ path: { antiAffinityGroup: group }, query, body }),
    drop: (group: string) => oxide.antiAffinityGroupDelete({ path: { antiAffinityGroup: group }, query }),
    members: (group: string, page: { limit?: number; pageToken?: string | null } = {}) =>
      oxide.antiAffinityGroupMemberList({ path: { antiAffinityGroup: group }, query: { ...query, ...page } }),
    member: (group: string, instance: string) =>
      oxide.antiAffinityGroupMemberInstanceView({ path: { antiAffinityGroup: group, instance }, query }),
    add: (group: string, instance: string) =>
      oxide.antiAffinityGroupMemberInstanceAdd({ path: { antiAffinityGroup: group, instance }, query }),
    remove: (group: string, instance: string) =>
      oxide.antiAffinityGroupMemberInstanceDelete({ path: { antiAffinityGroup: group, instance }, query }),
    of: (instance: string) => oxide.instanceAntiAffinityGroupList({ path: { instance }, query }),
  },
];

describe.each(KINDS)('$kind groups, by the official Oxide client', (group) => {
  test('are created, listed in pages, renamed, joined, left and deleted', async () => {
    const body = { name: 'web', description: 'front ends', policy: 'fail', failureDomain: 'sled' } as const;
    const created = await group.create(body);
    expect(created.response.status).toBe(201);
    const made = data(created);
    expect(made).toMatchObject(body);
    expect(made.timeCreated).toBeInstanceOf(Date);
    expect(made.projectId).toBe((await harness.client.getProject('default')).id);
    const again = await group.create(body);
    expect([again.response.status, again.type === 'error' && again.data.errorCode]).toEqual([
      400,
      'ObjectAlreadyExists',
    ]);
    data(await group.create({ ...body, name: 'db', policy: 'allow' }));

    const first = data(await group.list({ limit: 1 }));
    expect(first.items.map((one) => one.name)).toEqual(['db']);
    const second = data(await group.list({ limit: 1, pageToken: first.nextPage ?? null }));
    expect(second.items.map((one) => one.name)).toEqual(['web']);
    expect(data(await group.view(made.id)).name).toBe('web');
    expect(data(await group.update('web', { name: 'front' })).name).toBe('front');
    expect((await group.view('web')).response.status).toBe(404);

    const names = [`${group.kind.replace('_', '-')}-a`, `${group.kind.replace('_', '-')}-b`];
    for (const name of names) await harness.create(name);
    const [one = '', two = ''] = names;
    const added = await group.add('front', one);
    expect(added.response.status).toBe(201);
    expect(data(added)).toMatchObject({ type: 'instance', value: { name: one, runState: 'stopped' } });
    expect((await group.add('front', one)).response.status).toBe(400);
    data(await group.add('front', two));
    const members = data(await group.members('front', { limit: 1 }));
    expect(members.items.map((member) => member.value.name)).toEqual([one]);
    const rest = data(await group.members('front', { limit: 1, pageToken: members.nextPage ?? null }));
    expect(rest.items.map((member) => member.value.name)).toEqual([two]);
    expect(data(await group.member('front', one)).value.name).toBe(one);
    expect(data(await group.of(one)).items.map((found) => found.name)).toEqual(['front']);

    await harness.client.startInstance(one, { project: 'default' });
    const running = await group.member('front', one);
    expect(['starting', 'running']).toContain(data(running).value.runState);
    const late = await group.add('db', one);
    expect([late.response.status, late.type === 'error' && late.data.message]).toEqual([
      400,
      expect.stringMatching(/stop it first/),
    ]);

    expect((await group.remove('front', one)).response.status).toBe(204);
    expect((await group.remove('front', one)).response.status).toBe(404);
    expect((await group.member('front', one)).response.status).toBe(404);
    expect((await group.drop('front')).response.status).toBe(204);
    expect((await group.drop('front')).response.status).toBe(404);
    expect(data(await group.of(two)).items).toEqual([]);
  });

  test('bad input names the field', async () => {
    const wrong = await fetch(`${harness.stack.apiUrl}/v1/${group.kind.replace('_', '-')}-groups?project=default`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'x', description: '', policy: 'maybe', failure_domain: 'rack' }),
    });
    expect(wrong.status).toBe(400);
    expect(await wrong.json()).toMatchObject({ message: expect.stringMatching(/policy: .*failure_domain: /) });
  });
});

test('an instance created into anti-affinity groups is in them before its first start', async () => {
  for (const name of ['apart-1', 'apart-2'])
    data(
      await oxide.antiAffinityGroupCreate({
        query,
        body: { name, description: '', policy: 'fail', failureDomain: 'sled' },
      }),
    );
  const body = (name: string) => ({
    name,
    description: '',
    hostname: name,
    ncpus: 1,
    memory: 1024 ** 3,
    antiAffinityGroups: ['apart-1', 'apart-2'],
  });
  const sleds = new Set<string | undefined>();
  for (const name of ['r1', 'r2', 'r3']) {
    const { id } = data(await oxide.instanceCreate({ query, body: body(name) }));
    await harness.shows(id, 'running');
    sleds.add((await harness.placed(id)).here.id);
  }
  expect(sleds.size).toBe(3);

  // A fourth finds no sled: it is created all the same, stopped, and its next start says why.
  const fourth = data(await oxide.instanceCreate({ query, body: body('r4') }));
  expect(fourth.runState).toBe('stopped');
  const error = await refused(harness.client.startInstance(fourth.id));
  expect(error.status).toBe(507);
  expect(error.message).toMatch(
    /anti-affinity group "apart-1" and anti-affinity group "apart-2" \(policy fail\) forbid every sled/,
  );

  // So does a migration onto another member, before anything is written.
  const r1 = data(await oxide.instanceView({ path: { instance: 'r1' }, query }));
  const { there } = await harness.placed(r1.id);
  const before = await harness.record(r1.id);
  const migration = await refused(harness.client.migrateInstance(r1.id, there.id));
  expect([migration.status, migration.message]).toEqual([507, expect.stringMatching(/"apart-1"/)]);
  expect(await harness.record(r1.id)).toEqual(before);

  const unknown = await oxide.instanceCreate({ query, body: { ...body('r5'), antiAffinityGroups: ['nobody'] } });
  expect(unknown.response.status).toBe(404);
  expect((await oxide.instanceView({ path: { instance: 'r5' }, query })).response.status).toBe(404);
});

test('the mooring command makes groups, fills them and shows them', { timeout: 300_000 }, async () => {
  const mooring = async (...args: string[]) => {
    const { code, stdout, stderr } = await runCommand([...args, '--json', '--api-url', harness.stack.apiUrl]);
    expect([code, stderr]).toEqual([0, '']);
    return JSON.parse(stdout);
  };
  // Every command is a process of its own: those that don't need each other run at once.
  const [group] = await Promise.all([
    mooring('anti-affinity-group', 'create', 'cli', '--policy', 'fail'),
    mooring('affinity-group', 'create', 'cli', '--policy', 'allow'),
    mooring('instance', 'create', 'c2', '--no-start'),
  ]);
  expect(group).toMatchObject({ name: 'cli', policy: 'fail', failure_domain: 'sled' });
  const [made, added] = await Promise.all([
    mooring('instance', 'create', 'c1', '--anti-affinity-group', 'cli'),
    mooring('anti-affinity-group', 'add', 'cli', 'c2'),
  ]);
  expect(added).toMatchObject({ type: 'instance', value: { name: 'c2', run_state: 'stopped' } });
  const [groupView, listed, network] = await Promise.all([
    mooring('anti-affinity-group', 'show', 'cli'),
    mooring('affinity-group', 'list'),
    mooring('network', 'list'),
  ]);
  expect(groupView.members.map((member: { value: { name: string } }) => member.value.name)).toEqual(['c1', 'c2']);
  expect(listed.map((one: { name: string }) => one.name)).toContain('cli');
  expect(network.map((one: { instance_id: string }) => one.instance_id)).toContain(made.id);
  expect(await mooring('anti-affinity-group', 'remove', 'cli', 'c2')).toEqual({ group: 'cli', removed: 'c2' });
  expect(await mooring('anti-affinity-group', 'list', '--instance', 'c2')).toEqual([]);
  expect(await mooring('anti-affinity-group', 'delete', 'cli')).toEqual({ deleted: 'cli' });
});
