/**
 * The permission of every endpoint, as data: one line a route. The API refuses to start with a route that is not here, so
 * that nothing is open because somebody forgot. `operation` is also its `operationId` in the OpenAPI document, and its name
 * in the audit log.
 */
import type { AccessRole, NeededRole } from './access.ts';

/**
 * What a request is about, by which the projects are found that a token on a project must hold: `null` belongs to the
 * fleet. A list (`projects`, `instances`, `tokens`) shows what may be seen.
 */
export const SUBJECTS = [
  'project',
  'project in query',
  'project in body',
  'projects',
  'instance',
  'instance, deleted too',
  'instances',
  'affinity group',
  'anti-affinity group',
  'operation',
  'token',
  'tokens',
] as const;
export type Subject = (typeof SUBJECTS)[number];

/**
 * When the audit record of a request that changes something is written: `with` the change, in its transaction; `before`,
 * where what it does is not one transaction of this database. `null`: it changes nothing that an operator decides.
 */
export type AuditMoment = 'with' | 'before' | null;

export interface Permission {
  readonly operation: string;
  /** `anyone` needs no token; `known` any valid token; `sled` is for sled agents, `sled or viewer` for viewers of the fleet as well. */
  readonly needs: NeededRole | 'anyone' | 'known' | 'sled' | 'sled or viewer';
  readonly subjects: readonly Subject[];
  readonly audit: AuditMoment;
  /** The status of its success, as the audit record has it. */
  readonly success: number;
}

const anyone = (operation: string): Permission => ({
  operation,
  needs: 'anyone',
  subjects: [],
  audit: null,
  success: 200,
});

const reads = (operation: string, role: AccessRole, on: NeededRole['on'], ...subjects: Subject[]): Permission => ({
  operation,
  needs: { role, on },
  subjects,
  audit: null,
  success: 200,
});

const changes = (
  operation: string,
  role: AccessRole,
  on: NeededRole['on'],
  audit: 'with' | 'before',
  success: number,
  ...subjects: Subject[]
): Permission => ({ operation, needs: { role, on }, subjects, audit, success });

function groups(path: string, name: string, subject: 'affinity group' | 'anti-affinity group') {
  const group = `/v1/${path}/:group`;
  const member = `${group}/members/instance/:instance`;
  return {
    [`GET /v1/${path}`]: reads(`${name}_list`, 'viewer', 'project', 'project in query'),
    [`POST /v1/${path}`]: changes(`${name}_create`, 'collaborator', 'project', 'with', 201, 'project in query'),
    [`GET ${group}`]: reads(`${name}_view`, 'viewer', 'project', subject),
    [`PUT ${group}`]: changes(`${name}_update`, 'collaborator', 'project', 'with', 200, subject),
    [`DELETE ${group}`]: changes(`${name}_delete`, 'collaborator', 'project', 'with', 204, subject),
    [`GET ${group}/members`]: reads(`${name}_member_list`, 'viewer', 'project', subject),
    [`GET ${member}`]: reads(`${name}_member_instance_view`, 'viewer', 'project', subject, 'instance'),
    [`POST ${member}`]: changes(
      `${name}_member_instance_add`,
      'collaborator',
      'project',
      'with',
      201,
      subject,
      'instance',
    ),
    [`DELETE ${member}`]: changes(
      `${name}_member_instance_delete`,
      'collaborator',
      'project',
      'with',
      204,
      subject,
      'instance',
    ),
    [`GET /v1/instances/:instance/${path}`]: reads(`instance_${name}_list`, 'viewer', 'project', 'instance'),
  };
}

const SLED = '/v1/system/hardware/sleds';

/** By method and path. */
export const PERMISSIONS: Readonly<Record<string, Permission>> = {
  'GET /openapi.json': anyone('openapi'),
  // Pages without anything on them: what they show, they ask for as whoever looks at them.
  'GET /': anyone('console'),
  'GET /docs': anyone('api_docs'),
  'GET /assets/:file': anyone('console_file'),
  'GET /healthz': anyone('healthz'),
  'GET /readyz': anyone('readyz'),

  'GET /v1/me': { operation: 'current_user_view', needs: 'known', subjects: [], audit: null, success: 200 },

  'GET /v1/projects': reads('project_list', 'viewer', 'project', 'projects'),
  'POST /v1/projects': changes('project_create', 'collaborator', 'fleet', 'with', 201),
  'GET /v1/projects/:project': reads('project_view', 'viewer', 'project', 'project'),
  'PUT /v1/projects/:project': changes('project_update', 'admin', 'project', 'with', 200, 'project'),
  'DELETE /v1/projects/:project': changes('project_delete', 'admin', 'project', 'with', 204, 'project'),
  'GET /v1/system/projects/:project/quota': reads('project_quota_view', 'viewer', 'project', 'project'),
  'PUT /v1/system/projects/:project/quota': changes('project_quota_update', 'admin', 'fleet', 'with', 200, 'project'),

  'GET /v1/instances': reads('instance_list', 'viewer', 'project', 'instances'),
  'POST /v1/instances': changes('instance_create', 'collaborator', 'project', 'with', 201, 'project in query'),
  'GET /v1/instances/:instance': reads('instance_view', 'viewer', 'project', 'instance'),
  'PUT /v1/instances/:instance': changes('instance_update', 'collaborator', 'project', 'with', 200, 'instance'),
  'DELETE /v1/instances/:instance': changes('instance_delete', 'collaborator', 'project', 'with', 204, 'instance'),
  'POST /v1/instances/:instance/start': changes('instance_start', 'collaborator', 'project', 'before', 202, 'instance'),
  'POST /v1/instances/:instance/stop': changes('instance_stop', 'collaborator', 'project', 'with', 202, 'instance'),
  'POST /v1/instances/:instance/reboot': changes(
    'instance_reboot',
    'collaborator',
    'project',
    'before',
    202,
    'instance',
  ),
  // Both speak of sleds, which are the fleet's.
  'POST /v1/instances/:instance/force-stop': changes(
    'instance_force_stop',
    'collaborator',
    'fleet',
    'with',
    202,
    'instance',
  ),
  'POST /v1/instances/:instance/migrate': changes(
    'instance_migrate',
    'collaborator',
    'fleet',
    'before',
    202,
    'instance',
  ),
  'GET /v1/instances/:instance/migration': reads('instance_migration_view', 'viewer', 'project', 'instance'),
  'GET /v1/instances/:instance/history': reads('instance_history', 'viewer', 'project', 'instance, deleted too'),
  // What a guest prints may be a secret. Source: Omicron asks for the right to modify the instance.
  'GET /v1/instances/:instance/serial-console': reads('instance_serial_console', 'collaborator', 'project', 'instance'),
  ...groups('affinity-groups', 'affinity_group', 'affinity group'),
  ...groups('anti-affinity-groups', 'anti_affinity_group', 'anti-affinity group'),
  'GET /v1/operations': reads('operation_list', 'viewer', 'project', 'instances'),
  'GET /v1/operations/:operation_id': reads('operation_view', 'viewer', 'project', 'operation'),
  // Who is on one project hears of that one; what is the fleet's is refused by the handler.
  'GET /v1/events': reads('event_stream', 'viewer', 'project', 'instances'),

  [`GET ${SLED}`]: reads('sled_list', 'viewer', 'fleet'),
  [`POST ${SLED}`]: changes('sled_add', 'admin', 'fleet', 'with', 201),
  [`GET ${SLED}/:sled_id`]: reads('sled_view', 'viewer', 'fleet'),
  [`PUT ${SLED}/:sled_id/provision-policy`]: changes('sled_set_provision_policy', 'collaborator', 'fleet', 'with', 200),
  [`PUT ${SLED}/:sled_id/address`]: changes('sled_set_address', 'admin', 'fleet', 'with', 200),
  [`POST ${SLED}/:sled_id/expunge`]: changes('sled_expunge', 'admin', 'fleet', 'with', 200),
  [`POST ${SLED}/:sled_id/declare-dead`]: changes('sled_declare_dead', 'admin', 'fleet', 'with', 200),
  [`GET ${SLED}/:sled_id/drain`]: reads('sled_drain_view', 'viewer', 'fleet'),
  [`POST ${SLED}/:sled_id/drain`]: changes('sled_drain_begin', 'collaborator', 'fleet', 'with', 202),
  [`DELETE ${SLED}/:sled_id/drain`]: changes('sled_drain_stop', 'collaborator', 'fleet', 'before', 202),

  'POST /v1/system/hardware/sled-invites': changes('sled_invite_create', 'admin', 'fleet', 'with', 201),
  [`GET ${SLED}/:sled_id/certificates`]: reads('sled_certificate_list', 'viewer', 'fleet'),
  [`POST ${SLED}/:sled_id/revoke-certificates`]: changes('sled_certificate_revoke', 'admin', 'fleet', 'with', 200),

  'GET /v1/system/reconcilers': reads('reconciler_list', 'viewer', 'fleet'),
  'PUT /v1/system/reconcilers/:name': changes('reconciler_update', 'admin', 'fleet', 'before', 200),
  'POST /v1/system/reconcilers/:name/run': changes('reconciler_run', 'collaborator', 'fleet', 'before', 200),

  'GET /v1/system/access-tokens': reads('access_token_list', 'admin', 'project', 'tokens'),
  'POST /v1/system/access-tokens': changes('access_token_create', 'admin', 'project', 'with', 201, 'project in body'),
  'DELETE /v1/system/access-tokens/:token': changes('access_token_revoke', 'admin', 'project', 'with', 204, 'token'),
  'GET /v1/system/activity': reads('system_activity_view', 'viewer', 'fleet'),
  'GET /v1/system/audit-log': reads('audit_log_list', 'viewer', 'fleet'),

  // A report changes only what its sled alone decides, and is kept in the rows that it changes.
  'PUT /vmms/:vmm_id': { operation: 'vmm_report', needs: 'sled', subjects: [], audit: null, success: 204 },
  // A lease is renewed every few seconds; that a sled was declared dead, and came back, is on the log.
  'PUT /sleds/:sled_id/lease': {
    operation: 'sled_lease_renew',
    needs: 'sled',
    subjects: [],
    audit: null,
    success: 200,
  },
  'GET /sleds/by-name/:name': { operation: 'sled_find', needs: 'sled', subjects: [], audit: null, success: 200 },
  'GET /network/instances': {
    operation: 'network_instances',
    needs: 'sled or viewer',
    subjects: [],
    audit: null,
    success: 200,
  },
};

/** The permission of a route, by its method and path; `undefined` when none is written down. `HEAD` asks what `GET` asks. */
export function permissionOf(method: string, path: string): Permission | undefined {
  return PERMISSIONS[`${method === 'HEAD' ? 'GET' : method} ${path}`];
}
