/** What every room of the API works with: its parts, and how it finds what a path names. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Client } from '@temporalio/client';
import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyRequest, RawServerDefault } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { SledClient } from '../activities/sled-client.ts';
import type { Database } from '../db/connect.ts';
import {
  findInstanceByName,
  type InstanceRecord,
  readInstance,
  readInstanceAndRecord,
} from '../db/queries/read-instance.ts';
import { requireProject } from '../db/transactions/manage-inventory.ts';
import { Refusal } from '../model/refusal.ts';
import type { Authority } from '../platform/identity/authority.ts';
import type { Metrics } from '../platform/telemetry/metrics.ts';
import type { WorkflowStarter } from '../temporal/workflow-starter.ts';
import type { InstanceView } from '../wire/operator-api/instances.ts';
import { isUuid, nameOrId } from '../wire/operator-api/names.ts';
import type { RequestAudit } from './audit.ts';
import type { Operations } from './operations.ts';
import { viewInstance } from './views.ts';

export type ApiApp = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  ZodTypeProvider
>;

export interface ApiContext {
  readonly db: Database;
  readonly temporal: Client;
  readonly workflows: WorkflowStarter;
  readonly operations: Operations;
  readonly sleds: SledClient;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** How sleds join with identities of their own; `null` where this API has no certificate authority. */
  readonly sledJoining: SledJoining | null;
  /** Whether a sled may be added that speaks plain HTTP, without an identity. */
  readonly plainSleds: boolean;
  /** How long a call waits for its saga's word when it asks for nothing less, in milliseconds. */
  readonly waitLimitMs: number;
  /** How long registering a VMM may take, in milliseconds; the sagas' own default when absent. */
  readonly registerTimeoutMs?: number | undefined;
  /** Where the Temporal Web UI shows a workflow's run; `null` when the API knows of no Web UI. */
  webUiLink(workflowId: string, runId: string): string | null;
}

/** What an API needs to let sleds join. */
export interface SledJoining {
  readonly authority: Authority;
  /** Where sleds reach the sled-facing listener. */
  readonly url: string;
}

/** An instance by name needs its project. */
export const projectQuery = z.object({ project: nameOrId.optional() });

/** Finds an instance that isn't deleted, by its id, or by its name within a project. Throws a {@link Refusal}. */
export async function findInstance(
  db: Database,
  instance: string,
  projectNameOrId: string | undefined,
): Promise<InstanceRecord> {
  if (isUuid(instance)) {
    const record = await readInstance(db, instance);
    if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', instance);
    return record;
  }
  if (projectNameOrId === undefined)
    throw Refusal.invalid('project: needed to find an instance by name; give ?project=, or the id of the instance');
  const owner = await requireProject(db, projectNameOrId, isUuid(projectNameOrId));
  const record = await findInstanceByName(db, owner.id, instance);
  if (record === null) throw Refusal.notFound('instance', instance);
  return record;
}

/** The instance that a request is about, noted for its audit record. Throws as {@link findInstance}. */
export async function subjectInstance(
  db: Database,
  request: FastifyRequest<{ Params: { instance: string }; Querystring: { project?: string | undefined } }>,
): Promise<InstanceRecord> {
  const record = await findInstance(db, request.params.instance, request.query.project);
  request.audit?.about(record.instance.id, record.instance.projectId);
  return record;
}

/**
 * An instance as the wire shows it now; with an `audit`, the request's success is put on record in the same statement. Throws
 * a {@link Refusal} when there is none.
 */
export async function showInstance(
  db: Database,
  instanceId: string,
  audit: RequestAudit | null = null,
): Promise<InstanceView> {
  const done = audit?.completed();
  const record =
    done === undefined ? await readInstance(db, instanceId) : await readInstanceAndRecord(db, instanceId, done);
  if (done !== undefined) audit?.noted(done);
  if (record === null) throw Refusal.notFound('instance', instanceId);
  return viewInstance(record);
}

/** How long a call may wait, in milliseconds: `Prefer: wait=SECONDS` (RFC 7240) asks for less than the limit. */
export function waitMs(request: FastifyRequest, limitMs: number): number {
  const prefer = [request.headers.prefer ?? []].flat().join(',');
  const asked = /(?:^|[,;\s])wait\s*=\s*"?(\d+)"?/i.exec(prefer)?.[1];
  return asked === undefined ? limitMs : Math.min(limitMs, Number(asked) * 1000);
}

/** Says where the operation that a call began or joined can be followed, to the caller and to the audit log. */
export function location(reply: FastifyReply, operationId: string): void {
  reply.header('location', `/v1/operations/${operationId}`);
  reply.request.audit?.began(operationId);
}

/**
 * The key that a client gave its call (`Idempotency-Key`, a UUID), so that the same call again is the same operation.
 * Throws a {@link Refusal} for one that is no UUID. Source: draft-ietf-httpapi-idempotency-key-header.
 */
export function idempotencyKey(request: FastifyRequest): string | undefined {
  const given = request.headers['idempotency-key'];
  if (given === undefined) return undefined;
  // The draft has it as a quoted string; most clients leave the quotes out.
  const key = String(given).replace(/^"(.*)"$/, '$1');
  if (!isUuid(key)) throw Refusal.invalid('Idempotency-Key: must be a UUID, a new one for each new call');
  return key.toLowerCase();
}
