import { z } from 'zod';
import { listOperations } from '../../db/queries/list-operations.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { Refusal } from '../../model/refusal.ts';
import { isUuid } from '../../wire/operator-api/names.ts';
import { operationListParams, operationView } from '../../wire/operator-api/operations.ts';
import { DEFAULT_PAGE_LIMIT, resultsPage } from '../../wire/operator-api/pages.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { findInstance } from '../find-instance.ts';
import { lastOfFull, placeTime, readToken, writeToken } from '../paging.ts';
import { readCurrentOperation, readProgress } from '../read-progress.ts';
import { viewListedOperation, viewOperation } from '../views/operation.ts';

const pageToken = z.object({ time: placeTime, id: z.guid() });

/** Adds the endpoints by which operations are found and followed. */
export function addOperationRoutes(app: ApiApp, { db, temporal, webUiLink }: ApiContext): void {
  app.get(
    '/v1/operations',
    {
      schema: {
        tags: ['operations'],
        querystring: operationListParams,
        response: { 200: resultsPage(operationView), ...errors },
      },
    },
    async (request) => {
      const { project, instance, state, outcome, start_time, page_token } = request.query;
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const owner = project === undefined ? null : (await requireProject(db, project, isUuid(project))).id;
      const subject = instance === undefined ? null : (await findInstance(db, instance, project)).instance;
      if (subject !== null && owner !== null && subject.projectId !== owner)
        throw Refusal.notFound('instance', instance ?? '');
      const rows = await listOperations(db, {
        projectId: owner,
        instanceId: subject?.id ?? null,
        isOver: state === undefined ? null : state === 'done',
        succeeded: outcome === undefined ? null : outcome === 'succeeded',
        since: start_time === undefined ? null : new Date(start_time),
        after: page_token === undefined ? null : readToken('page_token', pageToken, page_token),
        limit,
      });
      const last = lastOfFull(rows, limit);
      return {
        items: rows.map(({ listed }) =>
          viewListedOperation(listed, webUiLink(listed.operation.workflowId, listed.operation.id)),
        ),
        next_page: last === null ? null : writeToken(last.place),
      };
    },
  );

  app.get(
    '/v1/operations/:operation_id',
    {
      schema: {
        tags: ['operations'],
        params: z.object({ operation_id: z.guid() }),
        response: { 200: operationView, ...errors },
      },
    },
    async (request) => {
      const row = await readCurrentOperation(db, temporal, request.params.operation_id);
      if (row === null) throw Refusal.notFound('operation', request.params.operation_id);
      const progress = row.timeEnded === null ? await readProgress(temporal, row) : null;
      return viewOperation(row, progress, webUiLink(row.workflowId, row.id));
    },
  );
}
