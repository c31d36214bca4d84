import { z } from 'zod';
import { AUDIT_ACTORS } from '../../model/access.ts';
import { timestamp } from '../sled-protocol.ts';
import { uuid } from './names.ts';
import { pageParams } from './pages.ts';

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
