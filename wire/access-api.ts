/** Tokens, callers and the audit log, as operators and their programs see them. */

import { z } from 'zod';
import { ACCESS_ROLES, AUDIT_ACTORS } from '../model/access.ts';
import { nameOrId, pageParams, resourceName } from './operator-api.ts';
import { timestamp } from './sled-protocol.ts';

const uuid = z.guid();

/** How long a token lives when its maker says nothing, and at most, in seconds: 90 days, two years. */
export const DEFAULT_TOKEN_SECONDS = 90 * 24 * 3600;
export const MAX_TOKEN_SECONDS = 2 * 365 * 24 * 3600;

export const accessRole = z.enum(ACCESS_ROLES);

export const accessTokenCreate = z.object({
  name: resourceName,
  role: accessRole,
  /** The one project that it is on; the whole fleet when absent. */
  project: nameOrId.nullish(),
  expires_in_seconds: z.number().int().min(1).max(MAX_TOKEN_SECONDS).default(DEFAULT_TOKEN_SECONDS),
});
export type AccessTokenCreate = z.input<typeof accessTokenCreate>;

export const accessTokenView = z.object({
  id: uuid,
  name: z.string(),
  role: accessRole,
  /** `null`: the whole fleet. */
  project_id: uuid.nullable(),
  time_created: timestamp,
  /** `null`: never. */
  time_expires: timestamp.nullable(),
});
export type AccessTokenView = z.infer<typeof accessTokenView>;

/** The only answer that ever shows the token itself. */
export const accessTokenCreated = accessTokenView.extend({ token: z.string() });
export type AccessTokenCreated = z.infer<typeof accessTokenCreated>;

/** Who a request is from. Source: Oxide `CurrentUser`, whose silo is this installation; the last four fields are ours. */
export const currentUserView = z.object({
  id: uuid,
  display_name: z.string(),
  silo_id: uuid,
  silo_name: z.string(),
  fleet_viewer: z.boolean(),
  silo_admin: z.boolean(),
  /** `local`: the stack's own user, who needs no token. */
  kind: z.enum(['operator', 'local']),
  role: accessRole,
  project_id: uuid.nullable(),
  time_expires: timestamp.nullable(),
});
export type CurrentUserView = z.infer<typeof currentUserView>;

/** Source: the Oxide API's `audit_log_list`. `start_time` is included, `end_time` is not. */
export const auditLogParams = pageParams.omit({ sort_by: true }).extend({
  start_time: timestamp.optional(),
  end_time: timestamp.optional(),
  sort_by: z.enum(['time_and_id_ascending', 'time_and_id_descending']).optional(),
});

/** Source: Oxide `AuditLogEntry`; the fields after `time_completed` are ours. */
export const auditLogEntry = z.object({
  id: uuid,
  actor: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('silo_user'), silo_id: uuid, silo_user_id: uuid }),
    z.object({ kind: z.literal('user_builtin'), user_builtin_id: uuid }),
  ]),
  auth_method: z.enum(['access_token']).nullable(),
  credential_id: uuid.nullable(),
  /** The endpoint's `operationId`, or the name of an automatic action. */
  operation_id: z.string(),
  request_id: z.string(),
  request_uri: z.string(),
  result: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('success'), http_status_code: z.number().int() }),
    z.object({
      kind: z.literal('error'),
      http_status_code: z.number().int(),
      error_code: z.string().nullable(),
      error_message: z.string(),
    }),
    z.object({ kind: z.literal('unknown') }),
  ]),
  /** `0.0.0.0` for what came over no network: an automatic action. */
  source_ip: z.string(),
  user_agent: z.string().nullable(),
  time_started: timestamp,
  time_completed: timestamp,
  actor_kind: z.enum(AUDIT_ACTORS),
  actor_name: z.string(),
  subject_kind: z.string().nullable(),
  subject: z.string().nullable(),
  project_id: uuid.nullable(),
  /** The operation (a saga's run) that was begun or joined. */
  saga_operation_id: uuid.nullable(),
});
export type AuditLogEntry = z.infer<typeof auditLogEntry>;
