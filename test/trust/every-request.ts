/** A request for every endpoint of the permission table, and what it needs to find: for tests that walk all of them. */
import { randomUUID } from 'node:crypto';
import { sql } from 'drizzle-orm';
import type { Database } from '../../db/connect.ts';
import { sled, sledCertificate } from '../../db/schema.ts';
import { addAffinityMember } from '../../db/transactions/add-affinity-member.ts';
import { createAffinityGroup } from '../../db/transactions/create-affinity-group.ts';
import { createInstance } from '../../db/transactions/create-instance.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { createToken } from '../../db/transactions/create-token.ts';
import { PERMISSIONS, type Permission } from '../../model/permissions.ts';

/** A project with one of everything. */
export interface Belongings {
  readonly project: string;
  readonly projectName: string;
  /** A project without anything, to be deleted. */
  readonly empty: string;
  /** Stopped; in no group. */
  readonly instance: string;
  /** In both groups. */
  readonly member: string;
  readonly groups: { readonly affinity: string; readonly anti_affinity: string };
  readonly operation: string;
  readonly token: string;
  /** A sled whose agent has never reported. */
  readonly sled: string;
}

let made = 0;

/** Makes the belongings of a new project. With `projectId`, of that one. */
export async function makeBelongings(db: Database, projectId?: string): Promise<Belongings> {
  made += 1;
  const unique = `t${made}-${randomUUID().slice(0, 8)}`;
  const project = projectId ?? (await createProject(db, { name: `project-${unique}`, description: '' })).id;
  const named = await db.execute(sql`SELECT name FROM project WHERE id = ${project}`);
  const instances = [];
  for (const name of [`web-${unique}`, `member-${unique}`])
    instances.push(
      await createInstance(db, {
        projectId: project,
        name,
        description: '',
        hostname: 'web',
        ncpus: 1,
        memoryBytes: 2 ** 30,
        autoRestartPolicy: 'never',
      }),
    );
  const [instance = '', member = ''] = instances;
  const groups: Record<string, string> = {};
  for (const kind of ['affinity', 'anti_affinity'] as const) {
    const group = await createAffinityGroup(db, {
      projectId: project,
      kind,
      name: `${kind.replace('_', '-')}-${unique}`,
      description: '',
      policy: 'allow',
      failureDomain: 'sled',
    });
    await addAffinityMember(db, group, { id: member, name: 'member' });
    groups[kind] = group.id;
  }
  const operation = randomUUID();
  await db.execute(sql`
    INSERT INTO operation (id, kind, instance_id, workflow_id, succeeded, time_ended)
    VALUES (${operation}, 'start', ${instance}, ${`instance-start/${instance}`}, true, now())`);
  const token = await createToken(db, {
    name: `token-${unique}`,
    role: 'viewer',
    projectId: project,
    expiresInSeconds: 60,
  });
  const empty = await createProject(db, { name: `empty-${unique}`, description: '' });
  const sledId = randomUUID();
  await db.insert(sled).values({
    id: sledId,
    name: `sled-${unique}`,
    address: `127.0.0.1:${20_000 + made}`,
    threads: 1,
    memoryBytes: 2 ** 30,
    policy: 'no_provision',
    identified: true,
  });
  await db
    .insert(sledCertificate)
    .values({ serial: randomUUID(), sledId, timeExpires: new Date(Date.now() + 3_600_000) });
  return {
    project,
    projectName: String(named.rows[0]?.name),
    empty: projectId === undefined ? empty.id : project,
    instance,
    member,
    groups: { affinity: groups.affinity ?? '', anti_affinity: groups.anti_affinity ?? '' },
    operation,
    token: token.id,
    sled: sledId,
  };
}

const unique = (prefix: string) => `${prefix}-${randomUUID().slice(0, 8)}`;
const group = () => ({ name: unique('g'), description: '', policy: 'allow', failure_domain: 'sled' });

/** The bodies of the requests that have one, by operation. */
export const BODIES: Readonly<Record<string, (belongings: Belongings) => unknown>> = {
  project_create: () => ({ name: unique('p'), description: '' }),
  project_update: () => ({ description: unique('d') }),
  project_quota_update: () => ({ cpus: 100, memory: null }),
  instance_create: () => ({
    name: unique('i'),
    hostname: 'web',
    description: '',
    ncpus: 1,
    memory: 2 ** 30,
    start: false,
  }),
  instance_update: () => ({ description: unique('d') }),
  instance_force_stop: () => ({ sled_powered_off: true }),
  instance_migrate: ({ sled: id }) => ({ dst_sled_id: id }),
  affinity_group_create: group,
  affinity_group_update: () => ({ description: unique('d') }),
  anti_affinity_group_create: group,
  anti_affinity_group_update: () => ({ description: unique('d') }),
  sled_add: () => ({
    name: unique('s'),
    address: `127.${1 + Math.floor(Math.random() * 250)}.${Math.floor(Math.random() * 250)}.9:${10_000 + Math.floor(Math.random() * 50_000)}`,
    threads: 1,
    memory: 2 ** 30,
  }),
  sled_set_address: () => ({ address: `127.0.0.1:${40_000 + Math.floor(Math.random() * 20_000)}` }),
  sled_set_provision_policy: () => ({ state: 'provisionable' }),
  sled_drain_begin: () => ({ parallel: 1 }),
  reconciler_update: () => ({ enabled: true }),
  access_token_create: ({ project }) => ({ name: unique('t'), role: 'viewer', project, expires_in_seconds: 60 }),
  sled_declare_dead: () => ({ sled_powered_off: true }),
  sled_expunge: () => ({ sled_powered_off: true }),
  sled_invite_create: () => ({ name: unique('s') }),
  sled_lease_renew: () => ({ lease_ms: 30_000, held: false, epoch: null, vmms: [] }),
  vmm_report: () => ({ vmm_state: { state: 'running', gen: 3, time_updated: new Date().toISOString() } }),
};

export interface EveryRequest {
  readonly route: string;
  readonly permission: Permission;
  readonly method: string;
  readonly path: string;
  readonly body: unknown;
}

/** The request of one route on some belongings. */
export function requestFor(route: string, belongings: Belongings): EveryRequest {
  const permission = PERMISSIONS[route];
  if (permission === undefined) throw new Error(`no permission for ${route}`);
  const [method = '', pattern = ''] = route.split(' ');
  const ofMember = /^(GET|DELETE) .*members\/instance/.test(route);
  const values: Record<string, string> = {
    project: permission.operation === 'project_delete' ? belongings.empty : belongings.project,
    instance: ofMember ? belongings.member : belongings.instance,
    group: pattern.includes('anti-affinity') ? belongings.groups.anti_affinity : belongings.groups.affinity,
    operation_id: belongings.operation,
    sled_id: belongings.sled,
    name: 'reaper',
    token: belongings.token,
    vmm_id: randomUUID(),
    file: 'index.js',
  };
  const path = pattern.replace(/:(\w+)/g, (_, name: string) => {
    const value = values[name];
    if (value === undefined) throw new Error(`${route}: what stands for :${name}?`);
    return value;
  });
  // A stream would not end.
  if (permission.operation === 'event_stream')
    return { route, permission, method, path: `${path}?follow=false`, body: undefined };
  const inQuery = permission.subjects.includes('project in query');
  return {
    route,
    permission,
    method,
    path: inQuery ? `${path}?project=${belongings.projectName}` : path,
    body: BODIES[permission.operation]?.(belongings),
  };
}

/** All routes of the table. */
export const ROUTES = Object.keys(PERMISSIONS);

/** The tables whose rows requests change, the audit log aside. */
export const TABLES = [
  'project',
  'sled',
  'instance',
  'vmm',
  'migration',
  'sled_reservation',
  'provisioning_charge',
  'affinity_group',
  'affinity_group_member',
  'instance_network',
  'operation',
  'idempotency_key',
  'access_token',
  'sled_invite',
  'sled_certificate',
] as const;

/** What all tables hold, as one hash. */
export async function dump(db: Database): Promise<string> {
  const parts = TABLES.map(
    (name) =>
      sql`SELECT ${name} AS name, md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) AS hash FROM ${sql.raw(name)} t`,
  );
  const { rows } = await db.execute(sql.join(parts, sql` UNION ALL `));
  return JSON.stringify(rows);
}
