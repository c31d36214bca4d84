import { and, asc, eq, gt, ne, sql } from 'drizzle-orm';
import { z } from 'zod';
import { sled } from '../../db/schema.ts';
import { declareSledDead } from '../../db/transactions/declare-dead.ts';
import { addSled, expungeSled, setSledPolicy } from '../../db/transactions/manage-inventory.ts';
import { Refusal } from '../../model/refusal.ts';
import { DEFAULT_PAGE_LIMIT, pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import {
  provisionPolicyParams,
  provisionPolicyResponse,
  sledAdd,
  sledDeclareDead,
  sledView,
} from '../../wire/operator-api/sleds.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { readPage, writePage } from '../paging.ts';
import { viewSled } from '../views.ts';

/** How long a sled that is said to be powered off is listened to, in milliseconds. */
const PROBE_MS = 3_000;

/** Adds the endpoints of sleds. */
export function addSledRoutes(app: ApiApp, context: ApiContext): void {
  const { db, workflows, sleds, log } = context;
  const sledParams = z.object({ sled_id: z.guid() });
  const sledRoute = { tags: ['system'], params: sledParams };
  // Named in full: in a query of one table drizzle writes bare column names, which a subquery would take for its own.
  const vmmCount = sql<number>`(SELECT count(*)::int FROM vmm placed WHERE placed.sled_id = sled.id AND placed.time_deleted IS NULL
    AND placed.state NOT IN ('destroyed', 'failed', 'saga_unwound'))`;

  async function requireSled(sledId: string) {
    const [row] = await db.select({ sled, vmmCount }).from(sled).where(eq(sled.id, sledId));
    if (row === undefined) throw Refusal.notFound('sled', sledId);
    return viewSled(row.sled, row.vmmCount);
  }

  app.get(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], querystring: pageParams, response: { 200: resultsPage(sledView), ...errors } } },
    async (request) => {
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const page = readPage(request.query.page_token, 'id_ascending');
      const rows = await db
        .select({ sled, vmmCount })
        .from(sled)
        .where(and(ne(sled.policy, 'expunged'), page.after === null ? undefined : gt(sled.id, page.after)))
        .orderBy(asc(sled.id))
        .limit(limit);
      const last = rows.at(-1);
      return {
        items: rows.map((row) => viewSled(row.sled, row.vmmCount)),
        next_page: rows.length < limit || last === undefined ? null : writePage('id_ascending', last.sled.id),
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], body: sledAdd, response: { 201: sledView, ...errors } } },
    async (request, reply) => {
      if (!context.plainSleds) {
        throw Refusal.invalid(
          'address: a sled agent without an identity (plain HTTP) is not taken by this API: invite the sled with "mooring sled invite NAME" and join it on its server, or start the API with --insecure-sleds',
        );
      }
      const { memory, ...rest } = request.body;
      return reply
        .status(201)
        .send(viewSled(await addSled(changing(request, db), { ...rest, memoryBytes: memory }), 0));
    },
  );
  app.get(
    '/v1/system/hardware/sleds/:sled_id',
    { schema: { ...sledRoute, response: { 200: sledView, ...errors } } },
    async (request) => requireSled(request.params.sled_id),
  );
  app.put(
    '/v1/system/hardware/sleds/:sled_id/provision-policy',
    { schema: { ...sledRoute, body: provisionPolicyParams, response: { 200: provisionPolicyResponse, ...errors } } },
    async (request) => {
      const before = await setSledPolicy(
        changing(request, db),
        request.params.sled_id,
        request.body.state === 'provisionable' ? 'in_service' : 'no_provision',
      );
      return {
        old_state: before === 'in_service' ? ('provisionable' as const) : ('non_provisionable' as const),
        new_state: request.body.state,
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds/:sled_id/declare-dead',
    { schema: { ...sledRoute, body: sledDeclareDead.nullish(), response: { 200: sledView, ...errors } } },
    async (request) => {
      const found = await requireSled(request.params.sled_id);
      if (!request.body?.sled_powered_off)
        throw Refusal.conflict(
          `sled "${found.name}" can't be declared dead without your word for it: its guests are started elsewhere, and run twice if they still run there. Power it off and say so (sled_powered_off: true)`,
        );
      if (found.policy.kind !== 'expunged' && (await sleds.answers(found, PROBE_MS)))
        throw Refusal.conflict(`sled "${found.name}" answers, so it is powered on: power it off first, or drain it`);
      const { instanceIds } = await declareSledDead(changing(request, db), found.id);
      await Promise.all(instanceIds.map((instanceId) => workflows.signalUpdate(instanceId))).catch((error: unknown) =>
        log.warn({ err: error }, 'instances of a dead sled wait for the scan'),
      );
      return requireSled(found.id);
    },
  );
  app.post(
    '/v1/system/hardware/sleds/:sled_id/expunge',
    { schema: { ...sledRoute, response: { 200: sledView, ...errors } } },
    async (request) => {
      // The sled is expunged: should a signal be lost, the scan finds whom it was for.
      const affected = await expungeSled(changing(request, db), request.params.sled_id);
      await Promise.all(affected.map((instanceId) => workflows.signalUpdate(instanceId))).catch((error: unknown) =>
        log.warn({ err: error }, 'instances of an expunged sled wait for the scan'),
      );
      return requireSled(request.params.sled_id);
    },
  );
}
