import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { InstanceRecord } from '../../db/queries/read-instance.ts';
import { checkMigration } from '../../db/transactions/claim-migration.ts';
import { recordRunningIntent } from '../../db/transactions/record-running-intent.ts';
import type { RequestKey } from '../../db/transactions/take-key.ts';
import { requireLegal } from '../../model/legality.ts';
import type { SubjectNames } from '../../temporal/subject-names.ts';
import { instanceMigrate, instanceView } from '../../wire/operator-api/instances.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { calledInstance, instanceRoute, showInstance } from '../find-instance.ts';
import { linkOperation, waitMs } from '../headers.ts';
import type { OperationAnswer, OperationRequest } from '../operations.ts';

/** Adds the endpoints that run a saga on an instance: start and migrate. */
export function addInstanceOperationRoutes(app: ApiApp, context: ApiContext): void {
  const { db, operations } = context;
  const accepted = { 202: instanceView, ...errors };

  app.post(
    '/v1/instances/:instance/start',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { record, taken, key } = await calledInstance(db, request, 'start', bodyOfStart(request));
      const subject = { id: record.instance.id, names: namesOf(record) };
      const start = startRequest(context, request, subject, { call: 'start', key });
      const answer = await operations.once(start, taken, () => beginStart(record, start));
      if (answer !== null) linkOperation(reply, answer.operationId);
      return reply.status(202).send(await showInstance(db, record.instance.id, request.audit));
    },
  );

  /** Runs a start, or joins the one under way; `null` for an instance that is started. Throws where it may not be started. */
  async function beginStart(read: InstanceRecord, start: OperationRequest): Promise<OperationAnswer | null> {
    const { id, name } = read.instance;
    const startedAlready = requireLegal('start', name, read.externalState) === 'no-op';
    // Its intent is recorded under a lock, and it may show something else by then.
    const { externalState } = startedAlready ? await recordRunningIntent(db, id) : read;
    if (requireLegal('start', name, externalState) === 'act') return operations.run(start);
    return externalState === 'starting' ? operations.joinOpen(start) : null;
  }

  app.post(
    '/v1/instances/:instance/migrate',
    { schema: { ...instanceRoute, body: instanceMigrate, response: accepted } },
    async (request, reply) => {
      const destinationSledId = request.body.dst_sled_id.toLowerCase();
      const { record, taken, key } = await calledInstance(db, request, 'migrate', { destinationSledId });
      const { id, name } = record.instance;
      const migrate: OperationRequest = {
        key,
        waitMs: waitMs(request, context.waitLimitMs),
        kind: 'migrate',
        input: { instanceId: id, destinationSledId, ...registerTimeout(context) },
        summary: `migrate instance "${name}" to sled ${destinationSledId}`,
        joinable: {
          input: z.object({ destinationSledId: z.literal(destinationSledId) }),
          refusal: 'another migration of this instance is on its way: wait until it is over',
        },
        audit: request.audit,
      };
      const answer = await operations.once(migrate, taken, () => beginMigration(record, migrate, destinationSledId));
      if (answer !== null) linkOperation(reply, answer.operationId);
      return reply.status(202).send(await showInstance(db, id, request.audit));
    },
  );

  /** Runs a migration, or joins the one under way to the same sled. Throws where it may not be migrated there. */
  async function beginMigration(
    record: InstanceRecord,
    migrate: OperationRequest,
    destinationSledId: string,
  ): Promise<OperationAnswer | null> {
    const destination = await checkMigration(db, record, destinationSledId);
    if (destination === 'already') return operations.joinOpen(migrate);
    const { name: sled, sourceName } = destination;
    const names = { ...namesOf(record), sled, sourceSled: sourceName ?? undefined };
    return operations.run({ ...migrate, names });
  }
}

/** The start that a request asks for, by itself or with the instance's creation, whose audit record is written by then. */
export function startRequest(
  context: ApiContext,
  request: FastifyRequest,
  { id, names }: { readonly id: string; readonly names: SubjectNames },
  { call, key }: { readonly call: 'start' | 'create'; readonly key: RequestKey | undefined },
): OperationRequest {
  return {
    key,
    waitMs: waitMs(request, context.waitLimitMs),
    kind: 'start',
    input: { instanceId: id, reason: 'user', ...registerTimeout(context) },
    summary: `start instance "${names.instance}"`,
    names,
    audit: call === 'create' ? null : request.audit,
  };
}

/** The names by which a workflow of an instance is found. */
export function namesOf({ instance, projectName }: InstanceRecord): SubjectNames {
  return { instance: instance.name, project: projectName };
}

/** A start has no body; what a client sends as one all the same is a part of what its key names. */
function bodyOfStart({ body }: FastifyRequest): unknown {
  const empty = body == null || (typeof body === 'object' && Object.keys(body).length === 0);
  return empty ? null : body;
}

function registerTimeout({ registerTimeoutMs }: ApiContext): { registerTimeoutMs?: number } {
  return registerTimeoutMs === undefined ? {} : { registerTimeoutMs };
}
