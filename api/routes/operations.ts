import { z } from 'zod';
import { Refusal } from '../../model/refusal.ts';
import { operationView } from '../../wire/operator-api/operations.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { readCurrentOperation, readProgress } from '../read-progress.ts';
import { viewOperation } from '../views/operation.ts';

/** Adds the endpoint by which an operation is followed. */
export function addOperationRoutes(app: ApiApp, { db, temporal, webUiLink }: ApiContext): void {
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
