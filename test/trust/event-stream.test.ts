/**
 * The stream of changes on a real stack: what each token sees of it, what ends it, and that a reader who is cut at random places
 * has, in the end, the picture that lists show.
 */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type EventCallOptions, MooringClient, type ReceivedEvent } from '../../client/mooring-client.ts';
import { createToken } from '../../db/transactions/create-token.ts';
import type { AccessRole } from '../../model/access.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { eventually } from '../support/wait.ts';

let harness: Harness;
let admin: MooringClient;
const projects: Record<'mine' | 'theirs', string> = { mine: '', theirs: '' };
const instances: Record<'mine' | 'theirs', string> = { mine: '', theirs: '' };
const SIZE = { ncpus: 1, memory: 2 ** 30, description: '', hostname: 'a', start: false };

beforeAll(async () => {
  harness = await startHarness({ sleds: 1, reconcileEveryMs: 24 * 3_600_000, requireTokens: true });
  admin = new MooringClient({ url: harness.stack.apiUrl, token: harness.stack.adminToken.secret });
  for (const name of ['mine', 'theirs'] as const) {
    projects[name] = (await admin.createProject({ name, description: '' })).id;
    instances[name] = (await admin.createInstance({ ...SIZE, name: 'web' }, { project: name })).id;
  }
});
afterAll(() => harness?.close());

async function clientOf(role: AccessRole, project: 'mine' | null): Promise<{ client: MooringClient; id: string }> {
  const projectId = project === null ? null : projects[project];
  const name = `t-${randomUUID().slice(0, 8)}`;
  const { secret, id } = await createToken(harness.database.db, { name, role, projectId, expiresInSeconds: 3600 });
  return { client: new MooringClient({ url: harness.stack.apiUrl, token: secret }), id };
}

/** Reads in the background, from the first `reset` on, until it is stopped or fails. */
async function follow(client: MooringClient, options: EventCallOptions = {}) {
  const events: ReceivedEvent[] = [];
  const stop = new AbortController();
  let failure: unknown = null;
  const reading = (async () => {
    for await (const event of client.events({ ...options, signal: stop.signal })) events.push(event);
  })().catch((error: unknown) => {
    failure = error;
  });
  await eventually(() => events.length > 0 || failure !== null, 'the stream never began');
  return {
    events,
    failure: () => failure,
    async stop() {
      stop.abort();
      await reading;
    },
  };
}

test('each token hears of what it may see, and of nothing else', async () => {
  const seen: Record<string, string[]> = {};
  const followers = await Promise.all(
    (
      [
        ['viewer of the fleet', null, {}],
        ['viewer of mine', 'mine', {}],
        ['viewer of mine, of one instance', 'mine', { project: 'mine', instance: 'web' }],
        ['viewer of the fleet, of mine', null, { project: 'mine' }],
        ['viewer of the fleet, of mine and sleds', null, { project: 'mine', kinds: ['instance', 'sled'] }],
        ['viewer of the fleet, of sleds', null, { kinds: ['sled'] }],
      ] as const
    ).map(async ([who, project, options]) => {
      const { client } = await clientOf('viewer', project);
      return [who, await follow(client, options)] as const;
    }),
  );
  const mark = randomUUID();
  for (const project of ['theirs', 'mine'] as const) {
    await admin.updateInstance(instances[project], { description: mark });
    await admin.setQuota(project, { cpus: 100, memory: null });
  }
  const [sled] = harness.stack.sleds;
  await admin.setSledPolicy(sled?.id ?? '', 'non_provisionable');
  // What comes last for each is of its own.
  const other = await admin.createInstance({ ...SIZE, name: `last-${randomUUID().slice(0, 8)}` }, { project: 'mine' });
  const last = (event: ReceivedEvent) =>
    event.event === 'instance' && (event.data.id === other.id || event.data.object?.description === mark);
  for (const [who, { events }] of followers) {
    await eventually(
      () => (who.endsWith('of sleds') ? events.some(({ event }) => event === 'sled') : events.some(last)),
      `${who} did not hear`,
    );
  }
  await eventually(
    () => followers[0]?.[1].events.some(({ event, data }) => event === 'instance' && data.id === other.id) ?? false,
    'the last change was not heard of',
  );
  for (const [who, follower] of followers) {
    await follower.stop();
    const whose = (id: string | null) => (id === projects.mine ? 'mine' : id === projects.theirs ? 'theirs' : 'fleet');
    seen[who] = [
      ...new Set(
        follower.events.flatMap((event) =>
          'id' in event.data ? [`${event.event} of ${whose(event.data.project_id)}`] : [],
        ),
      ),
    ].sort();
  }
  const mine = ['instance of mine', 'project of mine'];
  expect(seen).toEqual({
    'viewer of the fleet': [
      'audit of fleet',
      'instance of mine',
      'instance of theirs',
      'project of mine',
      'project of theirs',
      'sled of fleet',
    ],
    'viewer of mine': mine,
    'viewer of mine, of one instance': ['instance of mine'],
    'viewer of the fleet, of mine': mine,
    'viewer of the fleet, of mine and sleds': ['instance of mine', 'sled of fleet'],
    'viewer of the fleet, of sleds': ['sled of fleet'],
  });
});

test.each([
  '/v1/events?follow=false',
  '/v1/events?kinds=bogus',
  '/v1/me',
  '/nowhere',
  '/docs/',
  '/assets/none.js',
  '/%zz',
])('no browser takes what is no page for one: %s', async (path) => {
  const headers = { authorization: `Bearer ${harness.stack.adminToken.secret}` };
  const answer = await fetch(`${harness.stack.apiUrl}${path}`, { headers });
  await answer.body?.cancel();
  expect(answer.headers.get('x-content-type-options')).toBe('nosniff');
  expect(answer.headers.get('content-security-policy')).toBe("default-src 'none'; frame-ancestors 'none'");
});

describe('what is refused', () => {
  test.each([
    ['sleds, of who is on a project', 'mine', { kinds: ['sled'] }, 403],
    ['the audit log, of who is on a project', 'mine', { kinds: ['instance', 'audit'] }, 403],
    ['another project', 'mine', { project: 'theirs' }, 404],
    ['another project’s instance, by its id', 'mine', { instance: 'theirs' }, 404],
    ['an instance of another project than it says', null, { project: 'mine', instance: 'theirs' }, 404],
    ['what isn’t there', null, { instance: randomUUID() }, 404],
    ['a kind that isn’t one', null, { kinds: ['everything' as 'sled'] }, 400],
    ['a name without a project', null, { instance: 'web' }, 400],
  ] as const)('%s', async (_, project, options, status) => {
    const { client } = await clientOf('viewer', project);
    const named =
      'instance' in options && options.instance === 'theirs' ? { ...options, instance: instances.theirs } : options;
    const asked = client.events({ ...named, follow: false }).next();
    await expect(asked).rejects.toMatchObject({ status });
  });

  test('a token that is revoked while it reads: it is told, and not let in again', async () => {
    const { client, id } = await clientOf('viewer', null);
    const follower = await follow(client, { kinds: ['project'] });
    await admin.revokeToken(id);
    await eventually(() => follower.failure() !== null, 'a revoked token goes on reading');
    expect(follower.failure()).toMatchObject({ status: 401, message: expect.stringContaining('was revoked') });
    await follower.stop();
  });

  test('a token that expires while it reads', async () => {
    const { client, id } = await clientOf('viewer', 'mine');
    const follower = await follow(client);
    await harness.database.db.execute(sql`UPDATE access_token SET time_expires = now() WHERE id = ${id}`);
    await eventually(() => follower.failure() !== null, 'an expired token goes on reading');
    expect(follower.failure()).toMatchObject({ status: 401, message: expect.stringContaining('has expired') });
    await follower.stop();
  });
});

test('whoever is cut at random places and resumes has the picture that lists show', async () => {
  const action = fc.oneof(
    fc.record({ what: fc.constant('change' as const), which: fc.nat(5) }),
    fc.record({ what: fc.constant('make or delete' as const), which: fc.nat(5) }),
    fc.record({ what: fc.constant('cut' as const), which: fc.nat(3) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(action, { minLength: 3, maxLength: 12 }), async (plan) => {
      const project = `p-${randomUUID().slice(0, 8)}`;
      await admin.createProject({ name: project, description: '' });
      const { client } = await clientOf('viewer', null);
      const picture = new Map<string, InstanceView>();
      let cursor: string | undefined;
      let resets = 0;
      /** Takes at most `most` events of a connection, then is cut. */
      const read = async (most: number) => {
        for await (const event of client.events({ project, after: cursor, follow: false })) {
          cursor = event.id ?? cursor;
          if (event.event === 'reset') resets += 1;
          else if (event.event === 'instance' && event.data.object !== null)
            picture.set(event.data.id, event.data.object);
          else if (event.event === 'instance') picture.delete(event.data.id);
          most -= 1;
          if (most === 0) break;
        }
      };
      await read(1);
      const made = new Map<number, string>();
      for (const { what, which } of plan) {
        const id = made.get(which);
        if (what === 'cut') await read(which + 1);
        else if (what === 'change' && id !== undefined) await admin.updateInstance(id, { description: randomUUID() });
        else if (what === 'make or delete' && id !== undefined) {
          await admin.deleteInstance(id);
          made.delete(which);
        } else if (id === undefined)
          made.set(
            which,
            (await admin.createInstance({ ...SIZE, name: `vm-${randomUUID().slice(0, 8)}` }, { project })).id,
          );
      }
      await read(Number.POSITIVE_INFINITY);
      const listed: InstanceView[] = [];
      for await (const one of client.listInstances({ project })) listed.push(one);
      const byId = (one: InstanceView, other: InstanceView) => one.id.localeCompare(other.id);
      expect([...picture.values()].sort(byId)).toEqual(listed.sort(byId));
      expect(resets).toBe(1);
    }),
    { numRuns: 8 },
  );
});

test('operations are listed for who may see them, and what happened is counted', async () => {
  const { client } = await clientOf('viewer', 'mine');
  const started = await admin.startInstance(instances.mine).catch(() => null);
  // Its sled takes nothing new.
  expect(started).toBeNull();
  const list = async (caller: MooringClient, query = '') => {
    const found = [];
    for await (const one of caller.listOperations(query === '' ? {} : JSON.parse(query))) found.push(one);
    return found;
  };
  expect(await list(client, '{"outcome":"failed"}')).toMatchObject([
    { kind: 'start', instance_name: 'web', project_id: projects.mine, outcome: 'failed' },
  ]);
  expect(await list(client, '{"state":"running"}')).toEqual([]);
  expect(await list(admin, '{"project":"theirs"}')).toEqual([]);
  const { minutes } = await admin.getActivity({ minutes: 5 });
  expect(minutes).toHaveLength(5);
  expect(minutes.reduce((sum, { starts }) => sum + starts.failed, 0)).toBe(1);
  await expect(client.getActivity()).rejects.toMatchObject({ status: 403 });
});
