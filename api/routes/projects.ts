import { z } from 'zod';
import { listProjects } from '../../db/queries/list-projects.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { createProject } from '../../db/transactions/create-project.ts';
import { deleteProject } from '../../db/transactions/delete-project.ts';
import { setQuota } from '../../db/transactions/set-quota.ts';
import { updateProject } from '../../db/transactions/update-project.ts';
import { isUuid, nameOrId } from '../../wire/operator-api/names.ts';
import { pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import { projectCreate, projectUpdate, projectView, quotaUpdate, quotaView } from '../../wire/operator-api/projects.ts';
import { visibleProject } from '../access.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { nextPage, readPageIn } from '../paging.ts';
import { viewProject, viewQuota } from '../views/project.ts';

/** Adds the endpoints of projects and their quotas. */
export function addProjectRoutes(app: ApiApp, context: ApiContext): void {
  const { db } = context;
  const projectParams = z.object({ project: nameOrId });
  const findProject = (named: string) => requireProject(db, named, isUuid(named));

  app.get(
    '/v1/projects',
    { schema: { tags: ['projects'], querystring: pageParams, response: { 200: resultsPage(projectView), ...errors } } },
    async (request) => {
      const page = readPageIn('name_ascending', request.query);
      const rows = await listProjects(db, { projectId: visibleProject(request), ...page });
      return { items: rows.map(viewProject), next_page: nextPage(page, rows) };
    },
  );
  app.post(
    '/v1/projects',
    { schema: { tags: ['projects'], body: projectCreate, response: { 201: projectView, ...errors } } },
    async (request, reply) =>
      reply.status(201).send(viewProject(await createProject(changing(request, db), request.body))),
  );
  app.get(
    '/v1/projects/:project',
    { schema: { tags: ['projects'], params: projectParams, response: { 200: projectView, ...errors } } },
    async (request) => viewProject(await findProject(request.params.project)),
  );
  app.put(
    '/v1/projects/:project',
    {
      schema: {
        tags: ['projects'],
        params: projectParams,
        body: projectUpdate,
        response: { 200: projectView, ...errors },
      },
    },
    async (request) => {
      const { id } = await findProject(request.params.project);
      request.audit?.about(id, id);
      const { name, description } = request.body;
      return viewProject(
        await updateProject(changing(request, db), id, {
          ...(name == null ? {} : { name }),
          ...(description == null ? {} : { description }),
        }),
      );
    },
  );
  app.delete(
    '/v1/projects/:project',
    { schema: { tags: ['projects'], params: projectParams, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const { id } = await findProject(request.params.project);
      request.audit?.about(id, id);
      await deleteProject(changing(request, db), id);
      return reply.status(204).send(null);
    },
  );
  const quotaRoute = { tags: ['system'], params: projectParams };
  app.get(
    '/v1/system/projects/:project/quota',
    { schema: { ...quotaRoute, response: { 200: quotaView, ...errors } } },
    async (request) => viewQuota(await findProject(request.params.project)),
  );
  app.put(
    '/v1/system/projects/:project/quota',
    { schema: { ...quotaRoute, body: quotaUpdate, response: { 200: quotaView, ...errors } } },
    async (request) => {
      const { id } = await findProject(request.params.project);
      request.audit?.about(id, id);
      return viewQuota(
        await setQuota(changing(request, db), id, { cpus: request.body.cpus, memoryBytes: request.body.memory }),
      );
    },
  );
}
