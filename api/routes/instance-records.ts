import { randomUUID } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import { listInstances } from '../../db/queries/list-instances.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { createInstance, type NewInstance } from '../../db/transactions/create-instance.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { type RequestKey, takeKey } from '../../db/transactions/take-key.ts';
import { type InstanceChanges, updateInstanceRecord } from '../../db/transactions/update-instance.ts';
import type { OperationError } from '../../model/failures.ts';
import { Refusal } from '../../model/refusal.ts';
import { signalIfNeeded } from '../../temporal/signal-update.ts';
import type { SubjectNames } from '../../temporal/subject-names.ts';
import {
  externalStateSchema,
  instanceCreate,
  instanceCreated,
  instanceUpdate,
  instanceView,
} from '../../wire/operator-api/instances.ts';
import { isUuid, nameOrId } from '../../wire/operator-api/names.ts';
import { pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { describeError, errors } from '../errors.ts';
import { instanceRoute, showInstance, subjectInstance } from '../find-instance.ts';
import { linkOperation } from '../headers.ts';
import { OperationFailed } from '../operations.ts';
import { nextPage, readPage } from '../paging.ts';
import { requestKey } from '../request-key.ts';
import { viewInstance } from '../views/instance.ts';
import { namesOf, startRequest } from './instance-operations.ts';

/** Adds the endpoints of instances as records: list, create, read, change, delete. */
export function addInstanceRecordRoutes(app: ApiApp, context: ApiContext): void {
  const { db, operations, log } = context;

  app.get(
    '/v1/instances',
    {
      schema: {
        tags: ['instances'],
        querystring: pageParams.extend({
          project: nameOrId.optional(),
          state: externalStateSchema.optional(),
          sled: z.guid().optional(),
        }),
        response: { 200: resultsPage(instanceView), ...errors },
      },
    },
    async (request) => {
      const { project: owner, state, sled: sledId } = request.query;
      const asked = readPage(request.query);
      const projectId = owner === undefined ? undefined : (await requireProject(db, owner, isUuid(owner))).id;
      // Names are unique only within a project.
      const page = projectId === undefined ? { ...asked, order: 'id_ascending' as const } : asked;
      const records = await listInstances(db, { projectId, sledId, externalState: state, ...page });
      return {
        items: records.map(viewInstance),
        next_page: nextPage(
          page,
          records.map((record) => record.instance),
        ),
      };
    },
  );

  app.post(
    '/v1/instances',
    {
      schema: {
        tags: ['instances'],
        querystring: z.object({ project: nameOrId }),
        body: instanceCreate,
        response: { 201: instanceCreated, ...errors },
      },
    },
    async (request, reply) => {
      const { project: owner } = request.query;
      const { body } = request;
      const { id: projectId, name: projectName } = await requireProject(db, owner, isUuid(owner));
      const key = requestKey(request, 'create', { ...body, project: projectId });
      const newId: string = randomUUID();
      request.audit?.about(newId, projectId);
      const values = { ...readNewInstance(body), id: newId, key, projectId };
      const instanceId = await createInstance(changing(request, db), values);
      // Not the new id, where the same call had made it before.
      request.audit?.about(instanceId);
      let started: FirstStart = { operationId: null, error: null };
      if (body.start) {
        const isNew = instanceId === newId;
        // What was made before may have another name by now, or be deleted.
        const named = isNew ? null : await readInstance(db, instanceId);
        const names = isNew ? { instance: body.name, project: projectName } : named === null ? null : namesOf(named);
        if (names !== null) started = await startNew(request, { id: instanceId, names }, key);
        if (started.operationId !== null) linkOperation(reply, started.operationId);
      }
      const shown = await showInstance(db, instanceId);
      return reply.status(201).send({ ...shown, start_operation_id: started.operationId, start_error: started.error });
    },
  );

  /**
   * Starts an instance that was created with this request. It is there, stopped: its creation has succeeded, whatever becomes
   * of its start, so that this never throws; a start without a run is on record, too.
   */
  async function startNew(
    request: FastifyRequest,
    subject: { readonly id: string; readonly names: SubjectNames },
    key: RequestKey | undefined,
  ): Promise<FirstStart> {
    const start = startRequest(context, request, subject, { call: 'create', key });
    try {
      const taken = key === undefined ? null : await takeKey(db, key, subject.id);
      const { operationId } = await operations.once(start, taken, () => operations.run(start));
      return { operationId, error: null };
    } catch (error) {
      if (error instanceof OperationFailed) return { operationId: error.operationId, error: error.body };
      const refused = error instanceof Refusal;
      if (!refused) log.warn({ err: error, instance_id: subject.id }, 'a new instance was not started');
      const { status, code, message } = describeError(error);
      const why = refused
        ? message
        : `${message}; its start may have begun all the same: look at the instance, and start it if it is stopped`;
      const body = { status, error_code: code, message: why };
      const operationId = await operations.recordNotBegun(start, body).catch(() => null);
      return { operationId, error: body };
    }
  }

  app.get(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 200: instanceView, ...errors } } },
    async (request) => viewInstance(await subjectInstance(db, request)),
  );

  app.put(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, body: instanceUpdate, response: { 200: instanceView, ...errors } } },
    async (request) => {
      const { instance } = await subjectInstance(db, request);
      await updateInstanceRecord(changing(request, db), instance.id, readChanges(request.body));
      return showInstance(db, instance.id);
    },
  );

  app.delete(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const { instance } = await subjectInstance(db, request);
      await deleteInstance(changing(request, db), instance.id);
      // It is deleted: should the signal be lost, the scan finds what it left.
      await signalIfNeeded(context, instance.id).catch((error: unknown) =>
        log.warn({ err: error }, 'a deleted instance waits for the scan'),
      );
      return reply.status(204).send(null);
    },
  );
}

/** What became of the start of a new instance. */
interface FirstStart {
  /** `null` where none is on record. */
  readonly operationId: string | null;
  /** `null` where it has succeeded, or goes on. */
  readonly error: OperationError | null;
}

function readNewInstance(body: z.output<typeof instanceCreate>): Omit<NewInstance, 'id' | 'projectId'> {
  return {
    name: body.name,
    description: body.description,
    hostname: body.hostname,
    ncpus: body.ncpus,
    memoryBytes: body.memory,
    autoRestartPolicy: body.auto_restart_policy ?? null,
    restartPriority: body.restart_priority,
    antiAffinityGroups: (body.anti_affinity_groups ?? []).map((named) =>
      isUuid(named) ? { id: named } : { name: named },
    ),
  };
}

function readChanges(body: z.output<typeof instanceUpdate>): InstanceChanges {
  const { name, description, ncpus, memory, auto_restart_policy, auto_restart_cooldown_seconds, restart_priority } =
    body;
  return {
    ...(name === undefined ? {} : { name }),
    ...(description === undefined ? {} : { description }),
    ...(ncpus === undefined ? {} : { ncpus }),
    ...(memory === undefined ? {} : { memoryBytes: memory }),
    ...(auto_restart_policy === undefined ? {} : { autoRestartPolicy: auto_restart_policy }),
    ...(auto_restart_cooldown_seconds === undefined
      ? {}
      : { autoRestartCooldownSeconds: auto_restart_cooldown_seconds }),
    ...(restart_priority === undefined ? {} : { restartPriority: restart_priority }),
  };
}
