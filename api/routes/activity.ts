import { readActivity } from '../../db/queries/read-activity.ts';
import { activityParams, activityView } from '../../wire/operator-api/activity.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { viewActivity } from '../views/activity.ts';

/** Adds the endpoint that shows what happened lately, for plots. */
export function addActivityRoutes(app: ApiApp, { db }: ApiContext): void {
  app.get(
    '/v1/system/activity',
    { schema: { tags: ['system'], querystring: activityParams, response: { 200: activityView, ...errors } } },
    async (request) => viewActivity(await readActivity(db, request.query.minutes)),
  );
}
