/** Every endpoint × every role × its own project, another one and the fleet; and the audit record of everything that changes something. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { MooringClient } from '../../client/mooring-client.ts';
import { createToken } from '../../db/transactions/create-token.ts';
import { ACCESS_ROLES, type AccessRole } from '../../model/access.ts';
import { PERMISSIONS, type Permission } from '../../model/permissions.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import {
  type Belongings,
  BODIES,
  dump,
  type EveryRequest,
  makeBelongings,
  ROUTES,
  requestFor,
  TABLES,
} from './every-request.ts';

/** The loops have their schedules, and no pass but those that are asked for. */
const NEVER_MS = 24 * 3_600_000;
const PLACES = ['fleet', 'own', 'foreign'] as const;
type Place = (typeof PLACES)[number];
interface Holder {
  readonly role: AccessRole;
  readonly place: Place;
  readonly name: string;
  readonly secret: string;
}

let harness: Harness;
let own: Belongings;
let foreign: Belongings;
const holders: Holder[] = [];
const strangers: { readonly what: string; readonly authorization: string | undefined }[] = [];

beforeAll(async () => {
  harness = await startHarness({ sleds: 1, reconcileEveryMs: NEVER_MS, requireTokens: true });
  const { db } = harness.database;
  own = await makeBelongings(db);
  foreign = await makeBelongings(db);
  const make = async (name: string, role: AccessRole, projectId: string | null) =>
    createToken(db, { name, role, projectId, expiresInSeconds: 3600 });
  for (const role of ACCESS_ROLES) {
    for (const place of PLACES) {
      const projectId = { fleet: null, own: own.project, foreign: foreign.project }[place];
      const { name, secret } = await make(`${role}-${place}`, role, projectId);
      holders.push({ role, place, name, secret });
    }
  }
  const expired = await make('expired', 'admin', null);
  const revoked = await make('revoked', 'admin', null);
  await db.execute(sql`UPDATE access_token SET time_expires = now() - interval '1 second' WHERE id = ${expired.id}`);
  await db.execute(sql`UPDATE access_token SET time_revoked = now() WHERE id = ${revoked.id}`);
  strangers.push(
    { what: 'none', authorization: undefined },
    { what: 'expired', authorization: `Bearer ${expired.secret}` },
    { what: 'revoked', authorization: `Bearer ${revoked.secret}` },
    { what: 'unknown', authorization: `Bearer mooring-token-${'A'.repeat(43)}` },
    { what: 'the secret with one letter less', authorization: `Bearer ${holders[0]?.secret.slice(0, -1)}` },
    { what: 'basic', authorization: `Basic ${Buffer.from(`a:${holders[0]?.secret}`).toString('base64')}` },
  );
});
afterAll(() => harness?.close());

async function send(request: EveryRequest, authorization: string | undefined) {
  const response = await fetch(harness.stack.apiUrl + request.path, {
    method: request.method,
    headers: {
      prefer: 'wait=10',
      ...(authorization === undefined ? {} : { authorization }),
      ...(/_(create|start|migrate)$/.test(request.permission.operation) ? { 'idempotency-key': randomUUID() } : {}),
      ...(request.body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(request.body === undefined ? {} : { body: JSON.stringify(request.body) }),
  });
  const text = await response.text();
  return { status: response.status, requestId: response.headers.get('x-request-id') ?? '', text };
}

/** What a holder's request on the own project's belongings must come to. */
function expected({ needs, subjects }: Permission, { role, place }: Holder): 'allowed' | 403 | 404 {
  if (needs === 'anyone' || needs === 'known') return 'allowed';
  if (needs === 'sled') return 403;
  if (needs === 'sled or viewer') return place === 'fleet' ? 'allowed' : 403;
  const named = subjects.some((subject) => !['projects', 'instances', 'tokens'].includes(subject));
  if (place === 'foreign' && named) return 404;
  if (ACCESS_ROLES.indexOf(role) < ACCESS_ROLES.indexOf(needs.role)) return 403;
  return needs.on === 'fleet' && place !== 'fleet' ? 403 : 'allowed';
}

async function recordOf(requestId: string) {
  const { rows } = await harness.database.db.execute(sql`
    SELECT xmin::text AS transaction, * FROM audit_log WHERE request_id = ${requestId}`);
  return rows;
}

describe('the OpenAPI document', () => {
  const document = z.object({
    paths: z.record(
      z.string(),
      z.record(z.string(), z.object({ operationId: z.string(), requestBody: z.unknown().optional() })),
    ),
  });
  const all = async () => {
    const { paths } = document.parse(await (await fetch(`${harness.stack.apiUrl}/openapi.json`)).json());
    return Object.entries(paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({
        route: `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`,
        ...operation,
      })),
    );
  };

  test('has a permission for each endpoint, and nothing has a permission that is no endpoint', async () => {
    const endpoints = await all();
    const hidden = ['', 'docs', 'assets/:file', 'openapi.json', 'healthz', 'readyz'].map((path) => `GET /${path}`);
    expect([...endpoints.map(({ route }) => route), ...hidden].sort()).toEqual([...ROUTES].sort());
    for (const { route, operationId } of endpoints)
      expect([route, operationId]).toEqual([route, PERMISSIONS[route]?.operation]);
    expect(new Set(ROUTES.map((route) => PERMISSIONS[route]?.operation)).size).toBe(ROUTES.length);
  });

  test('names no endpoint that changes something and leaves no audit record, a sled’s reports and renewals aside', async () => {
    const unrecorded = (await all()).filter(
      ({ route }) => !route.startsWith('GET ') && PERMISSIONS[route]?.audit === null,
    );
    expect(unrecorded.map(({ route }) => route)).toEqual(['PUT /vmms/:vmm_id', 'PUT /sleds/:sled_id/lease']);
  });

  test('says of every endpoint that its errors have a request id, also those of HTTP itself, and which calls take a key', async () => {
    const header = z.object({ description: z.string() });
    const described = z.object({
      operationId: z.string(),
      parameters: z.array(z.object({ name: z.string(), in: z.string() })).default([]),
      responses: z.record(z.string(), z.object({ description: z.string(), headers: z.record(z.string(), header) })),
    });
    const whole = z.object({ paths: z.record(z.string(), z.record(z.string(), described)) });
    const { paths } = whole.parse(await (await fetch(`${harness.stack.apiUrl}/openapi.json`)).json());
    const keyed: string[] = [];
    for (const operation of Object.values(paths).flatMap((methods) => Object.values(methods))) {
      const { operationId, responses, parameters } = operation;
      for (const [status, { headers }] of Object.entries(responses))
        expect([operationId, status, Object.keys(headers)]).toEqual([
          operationId,
          status,
          expect.arrayContaining(['x-request-id']),
        ]);
      for (const status of ['405', '408', '413', '414', '415', '417', '422', '429', '431'])
        expect([operationId, responses['4XX']?.description]).toEqual([operationId, expect.stringContaining(status)]);
      expect(Object.keys(responses['4XX']?.headers ?? {})).toContain('Allow');
      expect(responses['5XX']?.description).toContain('503');
      if (parameters.some(({ name, in: where }) => name === 'Idempotency-Key' && where === 'header')) {
        keyed.push(operationId);
        const success = Object.entries(responses).find(([status]) => status.startsWith('2'));
        expect(Object.keys(success?.[1].headers ?? {})).toContain('Location');
      }
    }
    expect(keyed.sort()).toEqual(['instance_create', 'instance_migrate', 'instance_start']);
  });

  test('has no endpoint with a body that these tests don’t send', async () => {
    const withBody = (await all()).filter(({ requestBody }) => requestBody !== undefined);
    expect(withBody.map(({ operationId }) => operationId).sort()).toEqual(Object.keys(BODIES).sort());
  });
});

test('a route without a permission is refused as it is added', async () => {
  const { fastify } = await import('fastify');
  const { addAccessHooks } = await import('../../api/access.ts');
  const app = fastify();
  addAccessHooks(app, {
    db: harness.database.db,
    mode: 'tokens',
    sledOf: () => null,
    onRefused: () => {},
    onAuditLost: () => {},
  });
  expect(() => app.post('/v1/forgotten', async () => 'done')).toThrow(/POST \/v1\/forgotten has no permission/);
  await app.close();
});

test('whoever has no valid token gets 401 from every endpoint, and nothing is written', async () => {
  const before = await dump(harness.database.db);
  const wrong: string[] = [];
  for (const route of ROUTES) {
    for (const { what, authorization } of strangers) {
      const request = requestFor(route, own);
      const { needs } = request.permission;
      if (needs === 'anyone') continue;
      // Which sled agent it is, is another layer's business.
      if ((needs === 'sled' || needs === 'sled or viewer') && authorization === undefined) continue;
      const { status } = await send(request, authorization);
      if (status !== 401) wrong.push(`${route}, token ${what}: ${status}`);
    }
  }
  expect(wrong).toEqual([]);
  expect(await dump(harness.database.db)).toBe(before);
});

test('whoever may not gets 403, or 404 for what must stay unseen; nothing is written, and the attempt is on record', async () => {
  const before = await dump(harness.database.db);
  const wrong: string[] = [];
  let tried = 0;
  for (const route of ROUTES) {
    for (const holder of holders) {
      const request = requestFor(route, { ...own, empty: own.project });
      const due = expected(request.permission, holder);
      if (due === 'allowed') continue;
      tried += 1;
      const { status, requestId, text } = await send(request, `Bearer ${holder.secret}`);
      if (status !== due) wrong.push(`${route} as ${holder.name}: ${status}, should be ${due}: ${text}`);
      if (request.permission.audit === null) continue;
      const [record] = await recordOf(requestId);
      if (record?.result !== 'error' || record.http_status !== due || record.actor_name !== holder.name)
        wrong.push(`${route} as ${holder.name}: its record is ${JSON.stringify(record)}`);
    }
  }
  expect(wrong).toEqual([]);
  expect(tried).toBeGreaterThan(200);
  expect(await dump(harness.database.db)).toBe(before);
});

/** What an allowed request may be answered beside its success: it is refused for what it finds, not for who sends it. */
const ALSO: Readonly<Record<string, number>> = {
  // Stopped instances; a sled that never was drained; no console on simulated VMs.
  instance_reboot: 400,
  instance_migrate: 400,
  instance_serial_console: 409,
  instance_migration_view: 404,
  // An API without a certificate authority: test/trust/sled-identity.test.ts has one.
  sled_invite_create: 409,
  sled_drain_view: 404,
  sled_drain_stop: 404,
  // A build makes the pages, which these tests need not have.
  console: 404,
  api_docs: 404,
  console_file: 404,
};
/** What a transaction deletes leaves no row that tells which one it was; a drain's workflow writes its sled once more. */
const UNTRACEABLE = /group_delete$|member_instance_delete$|sled_drain_begin$/;

test('whoever may is let in, and what it changed has its record in the same transaction', async () => {
  const { db } = harness.database;
  const wrong: string[] = [];
  let tried = 0;
  for (const route of ROUTES) {
    for (const holder of holders) {
      const base = requestFor(route, own).permission;
      if (expected(base, holder) !== 'allowed') continue;
      tried += 1;
      // Its own to change, in the project that the holder is at home in.
      const fresh =
        base.audit === null
          ? own
          : await makeBelongings(
              db,
              holder.place === 'fleet' ? undefined : holder.place === 'own' ? own.project : foreign.project,
            );
      const request = requestFor(route, fresh);
      // The project itself can only be deleted once: what is in its way refuses it.
      const kept = base.operation === 'project_delete' && holder.place !== 'fleet';
      const due = kept ? [400] : [base.success, ALSO[base.operation] ?? base.success];
      const { status, requestId, text } = await send(request, `Bearer ${holder.secret}`);
      const label = `${route} as ${holder.name}`;
      if (!due.includes(status)) wrong.push(`${label}: ${status}, should be ${due.join(' or ')}: ${text}`);
      if (base.audit === null) continue;
      const records = await recordOf(requestId);
      const [record] = records;
      const result = status < 400 ? 'success' : 'error';
      if (
        records.length !== 1 ||
        record?.result !== result ||
        record.http_status !== status ||
        record.operation !== base.operation ||
        record.actor_name !== holder.name ||
        record.source_ip !== '127.0.0.1' ||
        record.subject === null ||
        record.subject_kind === null
      )
        wrong.push(`${label}: its record is ${JSON.stringify(records)}`);
      if (base.audit !== 'with' || status >= 400 || UNTRACEABLE.test(base.operation)) continue;
      const together = TABLES.map(
        (name) => sql`SELECT 1 FROM ${sql.raw(name)} t WHERE t.xmin::text = ${String(record?.transaction)}`,
      );
      const found = await db.execute(sql`SELECT EXISTS (${sql.join(together, sql` UNION ALL `)}) AS found`);
      if (found.rows[0]?.found !== true)
        wrong.push(`${label}: its record was not written by the transaction of its change`);
    }
  }
  expect(wrong).toEqual([]);
  expect(tried).toBeGreaterThan(150);
});

test('lists show only what may be seen', async () => {
  for (const { place, secret, role } of holders) {
    if (place === 'fleet') continue;
    const mine = place === 'own' ? own : foreign;
    const client = new MooringClient({ url: harness.stack.apiUrl, token: secret });
    for await (const one of client.listInstances()) expect(one.project_id).toBe(mine.project);
    const projects = [];
    for await (const one of client.listProjects()) projects.push(one.id);
    expect(projects).toEqual([mine.project]);
    if (role !== 'admin') continue;
    for await (const one of client.listTokens()) expect(one.project_id).toBe(mine.project);
  }
});

test('what may not be seen is refused with the very message of what is not there', async () => {
  const outsider = holders.find(({ role, place }) => role === 'admin' && place === 'foreign');
  const ids = JSON.stringify(own);
  for (const route of ROUTES) {
    const there = requestFor(route, own);
    if (outsider === undefined || expected(there.permission, outsider) !== 404) continue;
    // The same request, with ids and names of nothing: a letter in each is another one.
    const swap = (text: string) =>
      text.replace(/[0-9a-f]{8}-[0-9a-f]{4}-4|project-t\d+-[0-9a-f]{8}/g, (id) =>
        ids.includes(id) ? `${id.slice(0, -3)}${id.endsWith('-4') ? `${id.at(-3) === 'a' ? 'b' : 'a'}-4` : 'zzz'}` : id,
      );
    const absent = {
      ...there,
      path: swap(there.path),
      body: JSON.parse(swap(JSON.stringify(there.body ?? null))) ?? undefined,
    };
    const strip = (text: string) =>
      text.replace(/"[^"]*" *\}?$|[0-9a-f]{8}-[0-9a-f-]{27}|(project|empty)-t\d+-\w+/g, '');
    const one = await send(there, `Bearer ${outsider.secret}`);
    const other = await send(absent, `Bearer ${outsider.secret}`);
    expect([route, one.status, strip(one.text)]).toEqual([route, other.status, strip(other.text)]);
  }
});

test('an idempotency key of another project’s call tells nothing', async () => {
  const key = randomUUID();
  const create = (belongings: Belongings, secret: string) =>
    fetch(`${harness.stack.apiUrl}/v1/instances?project=${belongings.projectName}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${secret}`, 'idempotency-key': key, 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'keyed', hostname: 'a', description: '', ncpus: 1, memory: 2 ** 30, start: false }),
    });
  const [mine, theirs] = ['own', 'foreign'].map((place) =>
    holders.find((one) => one.role === 'collaborator' && one.place === place),
  );
  const first = (await (await create(own, mine?.secret ?? '')).json()) as { id: string };
  const second = await create(foreign, theirs?.secret ?? '');
  expect(second.status).toBe(422);
  expect(await second.text()).not.toContain(first.id);
});

test('nobody makes a token that may more than its maker', async () => {
  const maker = holders.find(({ role, place }) => role === 'admin' && place === 'own');
  const client = new MooringClient({ url: harness.stack.apiUrl, token: maker?.secret });
  await expect(client.createToken({ name: 'up', role: 'viewer' })).rejects.toMatchObject({ status: 403 });
  await expect(client.createToken({ name: 'aside', role: 'viewer', project: foreign.project })).rejects.toMatchObject({
    status: 404,
  });
  expect(await client.createToken({ name: 'same', role: 'admin', project: own.projectName })).toMatchObject({
    project_id: own.project,
  });
});
