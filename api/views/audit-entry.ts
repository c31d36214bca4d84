import type { CompletedRecord } from '../../db/queries/list-audit-log.ts';
import type { AuditLogEntry } from '../../wire/operator-api/audit-log.ts';
import { LOCAL_USER_ID, SILO_ID } from './oxide-ids.ts';

/** Source: the Oxide API's `AuditLogEntry`. Whoever is neither a user nor a token is a built-in user there. */
export function viewAuditEntry(row: CompletedRecord): AuditLogEntry {
  const byToken = row.actor === 'operator' && row.actorId !== null ? row.actorId : null;
  return {
    id: row.id,
    actor:
      byToken === null
        ? { kind: 'user_builtin', user_builtin_id: LOCAL_USER_ID }
        : { kind: 'silo_user', silo_id: SILO_ID, silo_user_id: byToken },
    auth_method: byToken === null ? null : 'access_token',
    credential_id: byToken,
    operation_id: row.operation,
    request_id: row.requestId,
    request_uri: row.requestUri,
    result: viewAuditResult(row),
    source_ip: row.sourceIp ?? '0.0.0.0',
    user_agent: row.userAgent,
    time_started: row.timeStarted.toISOString(),
    time_completed: row.timeCompleted.toISOString(),
    actor_kind: row.actor,
    actor_name: row.actorName,
    subject_kind: row.subjectKind,
    subject: row.subject,
    project_id: row.projectId,
    saga_operation_id: row.sagaOperationId,
  };
}

function viewAuditResult(row: CompletedRecord): AuditLogEntry['result'] {
  switch (row.result) {
    case 'success':
      return { kind: 'success', http_status_code: row.httpStatus ?? 200 };
    case 'error':
      return {
        kind: 'error',
        http_status_code: row.httpStatus ?? 500,
        error_code: row.errorCode,
        error_message: row.errorMessage ?? '',
      };
    default:
      return { kind: 'unknown' };
  }
}
