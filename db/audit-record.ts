/**
 * Records of the audit log, and the only statement that writes one. A record is one row, written by one statement that can stand alone, at the end of a
 * transaction, or inside another statement (`WITH recorded AS (…)`): so it commits with what it is about. Written a
 * second time it is completed.
 */
import { randomUUID } from 'node:crypto';
import { type SQL, sql } from 'drizzle-orm';
import type { AuditActor } from '../model/access.ts';

/** How an action ended. */
export type AuditOutcome =
  | { readonly result: 'success'; readonly httpStatus: number | null }
  | {
      readonly result: 'error';
      readonly httpStatus: number | null;
      readonly errorCode: string | null;
      readonly errorMessage: string;
    };

export interface AuditRecord {
  readonly id: string;
  /** How long ago it began, in milliseconds: times are the database's. */
  readonly elapsedMs: number;
  readonly actor: AuditActor;
  readonly actorName: string;
  readonly actorId: string | null;
  readonly sourceIp: string | null;
  readonly userAgent: string | null;
  readonly requestId: string;
  readonly requestUri: string;
  readonly operation: string;
  readonly subjectKind: string | null;
  readonly subject: string | null;
  readonly projectId: string | null;
  readonly sagaOperationId: string | null;
  /** `null`: it has only begun. */
  readonly outcome: AuditOutcome | null;
}

/** The lengths at which texts that a caller chooses are cut. Source: Oxide `AuditLogEntry`, for the first two. */
const MAX_URI = 512;
const MAX_USER_AGENT = 256;
const MAX_MESSAGE = 1024;
const MAX_SUBJECT = 256;

/**
 * The statement that writes a record, or completes the one that was written with this id. Inside another statement `from`
 * names what must have a row for the record to be written, and `subject` and `projectId` may be expressions of its columns.
 */
export function auditStatement(record: AuditRecord, within: { from?: SQL; subject?: SQL; projectId?: SQL } = {}): SQL {
  const { outcome } = record;
  const failed = outcome?.result === 'error' ? outcome : null;
  return sql`INSERT INTO audit_log AS entry (id, time_started, time_completed, actor, actor_name, actor_id, source_ip, user_agent,
      request_id, request_uri, operation, subject_kind, subject, project_id, saga_operation_id, result, http_status, error_code,
      error_message)
    SELECT ${record.id}, clock_timestamp() - ${Math.round(record.elapsedMs)}::int * interval '1 millisecond',
      ${outcome === null ? sql`NULL` : sql`clock_timestamp()`}, ${record.actor}, ${record.actorName}, ${record.actorId},
      ${record.sourceIp}, ${clean(record.userAgent, MAX_USER_AGENT)}, ${record.requestId}, ${clean(record.requestUri, MAX_URI)},
      ${record.operation}, ${record.subjectKind}, ${within.subject ?? sql`${clean(record.subject, MAX_SUBJECT)}`}, ${within.projectId ?? sql`${record.projectId}`},
      ${record.sagaOperationId}, ${outcome?.result ?? null}, ${outcome?.httpStatus ?? null}, ${failed?.errorCode ?? null},
      ${clean(failed?.errorMessage ?? null, MAX_MESSAGE)}
    ${within.from === undefined ? sql`` : sql`FROM ${within.from}`}
    ON CONFLICT (id) DO UPDATE SET time_completed = excluded.time_completed, result = excluded.result,
      http_status = excluded.http_status, error_code = excluded.error_code, error_message = excluded.error_message,
      subject = coalesce(excluded.subject, entry.subject), project_id = coalesce(excluded.project_id, entry.project_id),
      saga_operation_id = coalesce(excluded.saga_operation_id, entry.saga_operation_id)`;
}

/** PostgreSQL's text has no NUL, and no half of a surrogate pair. */
function clean(text: string | null, max: number): string | null {
  return text === null ? null : Buffer.from(text.slice(0, max).replaceAll('\0', '\uFFFD')).toString();
}

/**
 * The record of what was done past the API, by who holds the database; `how` is in what way. Whoever that is needs no
 * permission, and is on record all the same.
 */
export function databaseRecord(action: {
  readonly operation: string;
  readonly how: string;
  readonly subjectKind: string;
  readonly subject: string;
  readonly projectId: string | null;
}): AuditRecord {
  const id = randomUUID();
  return {
    id,
    elapsedMs: 0,
    actor: 'database',
    actorName: 'who holds the database',
    actorId: null,
    sourceIp: null,
    userAgent: null,
    requestId: id,
    requestUri: `database:${action.how}`,
    operation: action.operation,
    subjectKind: action.subjectKind,
    subject: action.subject,
    projectId: action.projectId,
    sagaOperationId: null,
    outcome: { result: 'success', httpStatus: null },
  };
}

/** What acted by itself: which loop or saga, on what, and the workflow's run that did. */
export interface AutomaticAction {
  /** Its name in the log, for example `auto_restart`. */
  readonly operation: string;
  /** Which loop or saga acted, for people. */
  readonly actorName: string;
  readonly subjectKind: 'instance' | 'vmm' | 'sled';
  readonly subject: string;
  readonly projectId?: string | null;
  readonly sagaOperationId?: string | null;
  /** The run of the workflow that acted, and its id. */
  readonly runId: string;
  readonly workflowId: string;
}

/** The record of an automatic action: with an `outcome`, a complete one. */
export function automaticRecord(action: AutomaticAction, outcome: AuditOutcome | null): AuditRecord {
  return {
    id: randomUUID(),
    elapsedMs: 0,
    actor: 'system',
    actorName: action.actorName,
    actorId: null,
    sourceIp: null,
    userAgent: null,
    requestId: action.runId,
    requestUri: `temporal:${action.workflowId}`,
    operation: action.operation,
    subjectKind: action.subjectKind,
    subject: action.subject,
    projectId: action.projectId ?? null,
    sagaOperationId: action.sagaOperationId ?? null,
    outcome,
  };
}
