/** How a request gets onto the audit log: begun, carried in the transaction of its change, and completed with its answer. */
import { randomUUID } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { AuditOutcome, AuditRecord } from '../db/audit-record.ts';
import type { Database } from '../db/connect.ts';
import { recordingDatabase, writeAudit } from '../db/transactions/write-audit.ts';
import type { Caller } from '../model/access.ts';
import type { Permission } from '../model/permissions.ts';

/** What a request is about, by the name of its path’s parameter. */
const KIND_OF_PARAM: Readonly<Record<string, string>> = {
  group: 'group',
  instance: 'instance',
  project: 'project',
  sled_id: 'sled',
  name: 'reconciler',
  token: 'token',
};

/** One request that changes something, on its way onto the log. */
export class RequestAudit {
  readonly #db: Database;
  readonly #permission: Permission;
  readonly #fixed: Pick<
    AuditRecord,
    'id' | 'actor' | 'actorName' | 'actorId' | 'sourceIp' | 'userAgent' | 'requestId' | 'requestUri' | 'operation'
  >;
  readonly #startedMs = performance.now();
  #subjectKind: string | null;
  #subject: string | null;
  #projectId: string | null = null;
  #sagaOperationId: string | null = null;
  /** The outcome that is in the database; `undefined`: nothing is. */
  #written: string | undefined;

  constructor(db: Database, request: FastifyRequest, caller: Caller, permission: Permission) {
    this.#db = db;
    this.#permission = permission;
    this.#fixed = {
      id: randomUUID(),
      ...actorOf(caller),
      sourceIp: request.ip,
      userAgent: request.headers['user-agent'] ?? null,
      requestId: request.id,
      requestUri: request.url,
      operation: permission.operation,
    };
    const params = (request.params ?? {}) as Record<string, string | undefined>;
    const [kind, named] =
      Object.entries(KIND_OF_PARAM)
        .map(([param, name]) => [name, params[param]] as const)
        .find(([, value]) => value !== undefined) ?? [];
    this.#subjectKind = kind ?? collectionOf(permission.operation);
    this.#subject = named ?? null;
  }

  /** The id of its record. */
  get id(): string {
    return this.#fixed.id;
  }

  /** Notes what the request is about, as soon as it is known: its id, and its project where it has one. */
  about(id: string, projectId: string | null = null): void {
    this.#subject = id;
    this.#projectId = projectId ?? this.#projectId;
  }

  /** Notes which operation the request began or joined. */
  began(operationId: string): void {
    this.#sagaOperationId = operationId;
  }

  /** A database whose transactions carry this request's record: for the change itself. */
  get db(): Database {
    return recordingDatabase(
      this.#db,
      (returned) => {
        const id = (returned as { id?: unknown } | null | undefined)?.id;
        if (this.#subject === null && typeof id === 'string') this.#subject = id;
        return this.#record(this.#succeeded());
      },
      () => this.#note(this.#succeeded()),
    );
  }

  /** The record of what has only begun, to be written by another statement, which {@link noted} must follow. */
  begun(): AuditRecord {
    return this.#record(null);
  }

  /** The record of the success that is about to be answered: as {@link begun}. */
  completed(): AuditRecord {
    return this.#record(this.#succeeded());
  }

  /** A statement has written `record`. */
  noted(record: AuditRecord): void {
    this.#note(record.outcome);
  }

  /** Writes that the request has begun. */
  async begin(): Promise<void> {
    const record = this.begun();
    await writeAudit(this.#db, record);
    this.noted(record);
  }

  /** Writes how the request was answered, unless that is on record. */
  async complete(reply: FastifyReply, payload: unknown): Promise<void> {
    const answer = parse(payload);
    if (this.#subject === null && typeof answer?.id === 'string') this.#subject = answer.id;
    const outcome: AuditOutcome =
      reply.statusCode < 400
        ? { result: 'success', httpStatus: reply.statusCode }
        : {
            result: 'error',
            httpStatus: reply.statusCode,
            errorCode: typeof answer?.error_code === 'string' ? answer.error_code : null,
            errorMessage: typeof answer?.message === 'string' ? answer.message : '',
          };
    if (this.#written === this.#stamp(outcome)) return;
    // Nothing was begun, and what kept it from that may be the database: no caller waits for it twice.
    if (this.#written === undefined && reply.statusCode >= 500) return;
    await writeAudit(this.#db, this.#record(outcome));
    this.#note(outcome);
  }

  #succeeded(): AuditOutcome {
    return { result: 'success', httpStatus: this.#permission.success };
  }

  #record(outcome: AuditOutcome | null): AuditRecord {
    return {
      ...this.#fixed,
      elapsedMs: performance.now() - this.#startedMs,
      subjectKind: this.#subjectKind,
      subject: this.#subject,
      projectId: this.#projectId,
      sagaOperationId: this.#sagaOperationId,
      outcome,
    };
  }

  #note(outcome: AuditOutcome | null): void {
    this.#written = this.#stamp(outcome);
  }

  #stamp(outcome: AuditOutcome | null): string {
    return JSON.stringify([outcome, this.#subject, this.#projectId, this.#sagaOperationId]);
  }
}

/** The database for a request's change: its transactions carry the request's audit record. */
export function changing(request: FastifyRequest, db: Database): Database {
  return request.audit?.db ?? db;
}

/** The database for a change that a sled makes by its certificate, or to get one: its transactions carry a record of it. */
export function bySled(request: FastifyRequest, db: Database, operation: string, sledId: string | null): Database {
  const startedMs = performance.now();
  return recordingDatabase(
    db,
    (returned) => {
      const joined = (returned ?? {}) as { sledId?: string; name?: string };
      const id = sledId ?? joined.sledId ?? null;
      return {
        id: randomUUID(),
        elapsedMs: performance.now() - startedMs,
        actor: 'sled',
        actorName: joined.name ?? 'sled agent',
        actorId: id,
        sourceIp: request.ip,
        userAgent: request.headers['user-agent'] ?? null,
        requestId: request.id,
        requestUri: request.url,
        operation,
        subjectKind: 'sled',
        subject: id,
        projectId: null,
        sagaOperationId: null,
        outcome: { result: 'success', httpStatus: 200 },
      };
    },
    () => {},
  );
}

function actorOf(caller: Caller): Pick<AuditRecord, 'actor' | 'actorName' | 'actorId'> {
  switch (caller.kind) {
    case 'operator':
      return { actor: 'operator', actorName: caller.token.name, actorId: caller.token.id };
    case 'local':
      return { actor: 'local', actorName: 'local operator', actorId: null };
    case 'sled':
      return { actor: 'sled', actorName: 'sled agent', actorId: caller.sledId };
  }
}

/** What a creation makes, by its name: `project_create` makes a project. */
function collectionOf(operation: string): string | null {
  const made = /^(access_)?(.*?)_(create|add)$/.exec(operation)?.[2];
  return made === undefined ? null : made.endsWith('affinity_group') ? 'group' : made;
}

function parse(payload: unknown): { id?: unknown; error_code?: unknown; message?: unknown } | null {
  if (typeof payload !== 'string' || !payload.startsWith('{')) return null;
  try {
    return JSON.parse(payload);
  } catch {
    return null;
  }
}
