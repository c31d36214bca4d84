/** How a request's instance is found, and answered. */
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { Database } from '../db/connect.ts';
import { findInstanceByName, type InstanceRecord, readInstance } from '../db/queries/read-instance.ts';
import { requireProject } from '../db/queries/require-project.ts';
import { readInstanceAndRecord } from '../db/transactions/read-instance-and-record.ts';
import { Refusal } from '../model/refusal.ts';
import type { InstanceView } from '../wire/operator-api/instances.ts';
import { isUuid, nameOrId } from '../wire/operator-api/names.ts';
import type { RequestAudit } from './audit.ts';
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
