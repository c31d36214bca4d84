import { z } from 'zod';
import type { Database } from '../../db/connect.ts';
import { retryOnConflict } from '../../db/errors.ts';
import { isAffinityMember } from '../../db/queries/is-affinity-member.ts';
import { listAffinityGroups, listAffinityMembers } from '../../db/queries/list-affinity-groups.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { requireAffinityGroup } from '../../db/queries/require-affinity-group.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { addAffinityMember } from '../../db/transactions/add-affinity-member.ts';
import { createAffinityGroup } from '../../db/transactions/create-affinity-group.ts';
import { deleteAffinityGroup } from '../../db/transactions/delete-affinity-group.ts';
import { removeAffinityMember } from '../../db/transactions/remove-affinity-member.ts';
import { updateAffinityGroup } from '../../db/transactions/update-affinity-group.ts';
import { Refusal } from '../../model/refusal.ts';
import { AFFINITY_KINDS, type AffinityKind, groupNoun } from '../../model/states.ts';
import {
  affinityGroupCreate,
  affinityGroupMember,
  affinityGroupUpdate,
  affinityGroupView,
} from '../../wire/operator-api/affinity-groups.ts';
import { isUuid, nameOrId } from '../../wire/operator-api/names.ts';
import { pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { findInstance, instanceRoute, projectQuery } from '../find-instance.ts';
import { nextPage, readPage } from '../paging.ts';
import { viewAffinityGroup, viewAffinityMember } from '../views/affinity-group.ts';

const PATHS: Readonly<Record<AffinityKind, string>> = {
  affinity: 'affinity-groups',
  anti_affinity: 'anti-affinity-groups',
};

/** Adds the endpoints of affinity and anti-affinity groups, in the shape that the Oxide API gives both. */
export function addAffinityGroupRoutes(app: ApiApp, context: ApiContext): void {
  for (const kind of AFFINITY_KINDS) {
    addGroupRoutes(kind, app, context);
    addMemberRoutes(kind, app, context);
  }
}

const groupParams = z.object({ group: nameOrId });

/** Adds the endpoints of groups as records. */
function addGroupRoutes(kind: AffinityKind, app: ApiApp, { db }: ApiContext): void {
  const path = `/v1/${PATHS[kind]}` as const;
  const tags = ['affinity'];
  const groupRoute = { tags, params: groupParams, querystring: projectQuery };

  app.get(
    path,
    {
      schema: {
        tags,
        querystring: pageParams.extend({ project: nameOrId }),
        response: { 200: resultsPage(affinityGroupView), ...errors },
      },
    },
    async (request) => {
      const { project: owner } = request.query;
      const { id: projectId } = await requireProject(db, owner, isUuid(owner));
      const page = readPage(request.query);
      const rows = await listAffinityGroups(db, kind, { projectId }, page);
      return { items: rows.map(viewAffinityGroup), next_page: nextPage(page, rows) };
    },
  );
  app.post(
    path,
    {
      schema: {
        tags,
        querystring: z.object({ project: nameOrId }),
        body: affinityGroupCreate,
        response: { 201: affinityGroupView, ...errors },
      },
    },
    async (request, reply) => {
      const { project: owner } = request.query;
      const { id: projectId } = await requireProject(db, owner, isUuid(owner));
      const { failure_domain: failureDomain, ...rest } = request.body;
      const group = await createAffinityGroup(changing(request, db), { projectId, kind, failureDomain, ...rest });
      return reply.status(201).send(viewAffinityGroup(group));
    },
  );
  app.get(
    `${path}/:group`,
    { schema: { ...groupRoute, response: { 200: affinityGroupView, ...errors } } },
    async (request) => viewAffinityGroup(await findGroup(db, kind, request.params.group, request.query.project)),
  );
  app.put(
    `${path}/:group`,
    { schema: { ...groupRoute, body: affinityGroupUpdate, response: { 200: affinityGroupView, ...errors } } },
    async (request) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      request.audit?.about(group.id, group.projectId);
      const { name, description } = request.body;
      return viewAffinityGroup(
        await updateAffinityGroup(changing(request, db), group, {
          ...(name == null ? {} : { name }),
          ...(description == null ? {} : { description }),
        }),
      );
    },
  );
  app.delete(
    `${path}/:group`,
    { schema: { ...groupRoute, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      request.audit?.about(group.id, group.projectId);
      await deleteAffinityGroup(changing(request, db), group);
      return reply.status(204).send(null);
    },
  );
}

/** Adds the endpoints of groups' members, and of the groups that an instance is in. */
function addMemberRoutes(kind: AffinityKind, app: ApiApp, { db }: ApiContext): void {
  const path = `/v1/${PATHS[kind]}` as const;
  const tags = ['affinity'];
  const memberParams = z.object({ group: nameOrId, instance: nameOrId });
  const memberRoute = { tags, params: memberParams, querystring: projectQuery };

  app.get(
    `${path}/:group/members`,
    {
      schema: {
        tags,
        params: groupParams,
        querystring: pageParams.extend({ project: nameOrId.optional() }),
        response: { 200: resultsPage(affinityGroupMember), ...errors },
      },
    },
    async (request) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      const page = readPage(request.query);
      const records = await listAffinityMembers(db, group.id, page);
      return {
        items: records.map(viewAffinityMember),
        next_page: nextPage(
          page,
          records.map((record) => record.instance),
        ),
      };
    },
  );
  app.get(
    `${path}/:group/members/instance/:instance`,
    { schema: { ...memberRoute, response: { 200: affinityGroupMember, ...errors } } },
    async (request) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      const record = await findInstance(db, request.params.instance, request.query.project);
      if (!(await isAffinityMember(db, group.id, record.instance.id)))
        throw Refusal.notFound(`member of ${groupNoun(kind)} "${group.name}"`, request.params.instance);
      return viewAffinityMember(record);
    },
  );
  app.post(
    `${path}/:group/members/instance/:instance`,
    { schema: { ...memberRoute, response: { 201: affinityGroupMember, ...errors } } },
    async (request, reply) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      const { instance } = await findInstance(db, request.params.instance, request.query.project);
      request.audit?.about(group.id, group.projectId);
      const target = changing(request, db);
      await retryOnConflict(() => target.transaction((open) => addAffinityMember(open, group, instance)));
      const record = await readInstance(db, instance.id);
      if (record === null) throw Refusal.notFound('instance', request.params.instance);
      return reply.status(201).send(viewAffinityMember(record));
    },
  );
  app.delete(
    `${path}/:group/members/instance/:instance`,
    { schema: { ...memberRoute, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const group = await findGroup(db, kind, request.params.group, request.query.project);
      const { instance } = await findInstance(db, request.params.instance, request.query.project);
      request.audit?.about(group.id, group.projectId);
      await changing(request, db).transaction((open) => removeAffinityMember(open, group, instance));
      return reply.status(204).send(null);
    },
  );
  app.get(
    `/v1/instances/:instance/${PATHS[kind]}`,
    {
      schema: {
        tags,
        params: instanceRoute.params,
        querystring: pageParams.extend({ project: nameOrId.optional() }),
        response: { 200: resultsPage(affinityGroupView), ...errors },
      },
    },
    async (request) => {
      const { instance } = await findInstance(db, request.params.instance, request.query.project);
      const page = readPage(request.query);
      const rows = await listAffinityGroups(db, kind, { instanceId: instance.id }, page);
      return { items: rows.map(viewAffinityGroup), next_page: nextPage(page, rows) };
    },
  );
}

/** Finds a group by its id, or by its name within a project. Throws a {@link Refusal}. */
async function findGroup(db: Database, kind: AffinityKind, named: string, projectNameOrId: string | undefined) {
  if (isUuid(named)) return requireAffinityGroup(db, kind, { id: named });
  if (projectNameOrId === undefined)
    throw Refusal.invalid(
      `project: needed to find an ${groupNoun(kind)} by name; give ?project=, or the id of the group`,
    );
  const { id } = await requireProject(db, projectNameOrId, isUuid(projectNameOrId));
  return requireAffinityGroup(db, kind, { name: named, projectId: id });
}
