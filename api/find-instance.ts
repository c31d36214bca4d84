/** How a request's instance is found, and answered. */
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { Database } from '../db/connect.ts';
import {
  findInstance as findNamed,
  type InstanceRecord,
  type NamedInstance,
  readInstance,
} from '../db/queries/read-instance.ts';
import { requireProject } from '../db/queries/require-project.ts';
import { type CalledInstance, findForCall } from '../db/transactions/find-for-call.ts';
import { readInstanceAndRecord } from '../db/transactions/read-instance-and-record.ts';
import { type RequestKey, requireSameRequest } from '../db/transactions/take-key.ts';
import { Refusal } from '../model/refusal.ts';
import type { KeyedCall } from '../model/states.ts';
import type { InstanceView } from '../wire/operator-api/instances.ts';
import { isUuid, nameOrId } from '../wire/operator-api/names.ts';
import type { RequestAudit } from './audit.ts';
import { requestKey } from './request-key.ts';
import { viewInstance } from './views/instance.ts';

/** An instance by name needs its project. */
export const projectQuery = z.object({ project: nameOrId.optional() });

/** Where an instance's endpoints are. */
export const instanceRoute = {
  tags: ['instances'],
  params: z.object({ instance: nameOrId }),
  querystring: projectQuery,
};

/** Finds an instance that isn't deleted, by its id, or by its name within a project. Throws a {@link Refusal}. */
export async function findInstance(
  db: Database,
  instance: string,
  projectNameOrId: string | undefined,
): Promise<InstanceRecord> {
  const record = await findNamed(db, await nameInstance(db, instance, projectNameOrId));
  if (record === null) throw Refusal.notFound('instance', instance);
  return record;
}

/** What a path and a query name. Throws a {@link Refusal} where the project is missing. */
async function nameInstance(db: Database, named: string, projectNameOrId: string | undefined): Promise<NamedInstance> {
  if (isUuid(named)) return { id: named };
  if (projectNameOrId === undefined)
    throw Refusal.invalid('project: needed to find an instance by name; give ?project=, or the id of the instance');
  const { id: projectId } = await requireProject(db, projectNameOrId, isUuid(projectNameOrId));
  return { projectId, name: named };
}

type InstanceRequest = FastifyRequest<{ Params: { instance: string }; Querystring: { project?: string | undefined } }>;

/** The instance that a request is about, noted for its audit record. Throws as {@link findInstance}. */
export async function subjectInstance(db: Database, request: InstanceRequest): Promise<InstanceRecord> {
  const record = await findInstance(db, request.params.instance, request.query.project);
  request.audit?.about(record.instance.id, record.instance.projectId);
  return record;
}

/**
 * The instance that a request may begin a saga on, as {@link subjectInstance}; with the same statement its audit record is
 * begun and its key taken. `asked`: what the body asks for. Throws as that one, and a {@link Refusal} for a key that is none,
 * or names another request.
 */
export async function calledInstance(
  db: Database,
  request: InstanceRequest,
  call: KeyedCall,
  asked: unknown,
): Promise<CalledInstance & { readonly key: RequestKey | undefined }> {
  const { audit } = request;
  const { instance, project } = { ...request.params, ...request.query };
  const key = await keyOf(db, request, call, asked);
  const begun = audit?.begun() ?? null;
  const found = await findForCall(db, await nameInstance(db, instance, project), { key, audit: begun });
  if (found === null) throw Refusal.notFound('instance', instance);
  const { id: instanceId, projectId } = found.record.instance;
  audit?.about(instanceId, projectId);
  if (begun !== null) audit?.noted(begun);
  if (found.taken !== null && key !== undefined) requireSameRequest(found.taken, key, instanceId);
  return { ...found, key };
}

/** The key of a request. Throws for one that is none; its audit record says what the request was about all the same. */
async function keyOf(
  db: Database,
  request: InstanceRequest,
  call: KeyedCall,
  asked: unknown,
): Promise<RequestKey | undefined> {
  try {
    return requestKey(request, call, asked);
  } catch (error) {
    await subjectInstance(db, request);
    throw error;
  }
}

/**
 * An instance as the API answers it now; with an `audit`, the request's success is put on record in the same statement. Throws
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
