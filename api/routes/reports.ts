import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import { applyReport, type ReportSource } from '../../db/transactions/apply-report.ts';
import { Refusal } from '../../model/refusal.ts';
import { signalAfterReport } from '../../temporal/signal-update.ts';
import { agentShownIn, sledVmmState } from '../../wire/sled-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors, IdentityRefused } from '../errors.ts';

/** Adds the endpoint that sled agents report to. `sourceOf` is who sends a request. */
export function addReportRoutes(
  app: ApiApp,
  context: ApiContext,
  sourceOf: (request: FastifyRequest) => ReportSource = () => ({ kind: 'anybody' }),
): void {
  const { db } = context;
  app.put(
    '/vmms/:vmm_id',
    {
      schema: {
        tags: ['sled agents'],
        params: z.object({ vmm_id: uuid }),
        body: sledVmmState,
        response: { 204: z.null(), ...errors },
      },
    },
    async (request, reply) => {
      const { vmm_id: vmmId } = request.params;
      const agentId = agentShownIn(request.headers);
      const applied = await applyReport(db, vmmId, request.body, {}, { ...sourceOf(request), agentId });
      if (applied !== null && applied.refusal !== null) {
        context.metrics.reportsRefused.inc({ reason: applied.refusal });
        throw new IdentityRefused(applied.refusal);
      }
      context.metrics.reports.inc({
        verdict:
          applied === null ? 'unknown' : applied.wrote ? 'news' : applied.verdict === 'unwound' ? 'unwound' : 'old',
      });
      if (applied === null) throw Refusal.notFound('VMM', vmmId);
      // Judged by what is stored, not by what this report changed; only a signal that was taken may be answered with 204.
      if (applied.verdict === 'applied') await signalAfterReport(context, applied);
      // What it says of its guests is taken; that it should have none is its answer.
      if (applied.sledExpunged) throw new IdentityRefused('expunged');
      return reply.status(204).send(null);
    },
  );
}
