import { z } from 'zod';
import { findToken } from '../../db/queries/find-token.ts';
import { listTokens } from '../../db/queries/list-tokens.ts';
import { requireProject } from '../../db/queries/require-project.ts';
import { createToken } from '../../db/transactions/create-token.ts';
import { revokeToken } from '../../db/transactions/revoke-token.ts';
import { includesRole } from '../../model/access.ts';
import { Refusal } from '../../model/refusal.ts';
import {
  accessTokenCreate,
  accessTokenCreated,
  accessTokenView,
  currentUserView,
  DEFAULT_TOKEN_SECONDS,
} from '../../wire/operator-api/access-tokens.ts';
import { isUuid, nameOrId } from '../../wire/operator-api/names.ts';
import { pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import { tokenOf, visibleProject } from '../access.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { nextPage, readPageIn } from '../paging.ts';
import { viewToken } from '../views/access-token.ts';
import { LOCAL_USER_ID, SILO_ID } from '../views/oxide-ids.ts';

/** Adds the endpoints of operators' tokens, and the one that answers who the caller is. */
export function addAccessTokenRoutes(app: ApiApp, { db }: ApiContext): void {
  const path = '/v1/system/access-tokens';
  const tags = ['access'];

  app.get('/v1/me', { schema: { tags, response: { 200: currentUserView, ...errors } } }, async (request) => {
    const token = tokenOf(request);
    const row = token === null ? null : await findToken(db, token.id, true);
    const role = token?.role ?? 'admin';
    const onFleet = token === null || token.projectId === null;
    return {
      id: token?.id ?? LOCAL_USER_ID,
      display_name: token?.name ?? 'local operator',
      silo_id: SILO_ID,
      silo_name: 'mooring',
      fleet_viewer: onFleet,
      silo_admin: onFleet && includesRole(role, 'admin'),
      kind: token === null ? ('local' as const) : ('operator' as const),
      role,
      project_id: token?.projectId ?? null,
      time_expires: row?.timeExpires?.toISOString() ?? null,
    };
  });
  app.get(
    path,
    { schema: { tags, querystring: pageParams, response: { 200: resultsPage(accessTokenView), ...errors } } },
    async (request) => {
      const page = readPageIn('name_ascending', request.query);
      const rows = await listTokens(db, { projectId: visibleProject(request), ...page });
      return { items: rows.map(viewToken), next_page: nextPage(page, rows) };
    },
  );
  app.post(
    path,
    { schema: { tags, body: accessTokenCreate, response: { 201: accessTokenCreated, ...errors } } },
    async (request, reply) => {
      const { name, role, project, expires_in_seconds } = request.body;
      const projectId = project == null ? null : (await requireProject(db, project, isUuid(project))).id;
      const made = await createToken(changing(request, db), {
        name,
        role,
        projectId,
        expiresInSeconds: expires_in_seconds ?? DEFAULT_TOKEN_SECONDS,
      });
      // Nobody between here and the one who asked may keep it.
      reply.header('cache-control', 'no-store');
      return reply.status(201).send({ ...viewToken(made), token: made.secret });
    },
  );
  app.delete(
    `${path}/:token`,
    { schema: { tags, params: z.object({ token: nameOrId }), response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const named = request.params.token;
      const token = await findToken(db, named, isUuid(named));
      if (token === null) throw Refusal.notFound('token', named);
      request.audit?.about(token.id, token.projectId);
      await revokeToken(changing(request, db), token);
      return reply.status(204).send(null);
    },
  );
}
