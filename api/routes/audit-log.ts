import { z } from 'zod';
import { listAuditLog } from '../../db/queries/list-audit-log.ts';
import { auditLogEntry, auditLogParams } from '../../wire/operator-api/audit-log.ts';
import { DEFAULT_PAGE_LIMIT, resultsPage } from '../../wire/operator-api/pages.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { lastOfFull, placeTime, readToken, writeToken } from '../paging.ts';
import { viewAuditEntry } from '../views/audit-entry.ts';

const pageToken = z.object({
  newestFirst: z.boolean(),
  time: placeTime,
  id: z.guid(),
});

/** Adds the endpoint that shows what was done. */
export function addAuditLogRoutes(app: ApiApp, { db }: ApiContext): void {
  app.get(
    '/v1/system/audit-log',
    {
      schema: {
        tags: ['system'],
        querystring: auditLogParams,
        response: { 200: resultsPage(auditLogEntry), ...errors },
      },
    },
    async (request) => {
      const { start_time, end_time, page_token, sort_by } = request.query;
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const page = page_token === undefined ? null : readToken('page_token', pageToken, page_token);
      const newestFirst = page?.newestFirst ?? sort_by === 'time_and_id_descending';
      const rows = await listAuditLog(db, {
        from: start_time === undefined ? null : new Date(start_time),
        until: end_time === undefined ? null : new Date(end_time),
        after: page,
        newestFirst,
        limit,
      });
      const last = lastOfFull(rows, limit);
      return {
        items: rows.map(({ record }) => viewAuditEntry(record)),
        next_page: last === null ? null : writeToken({ newestFirst, ...last.place }),
      };
    },
  );
}
