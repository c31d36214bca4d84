import { setTimeout as pause } from 'node:timers/promises';
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import { findSledByName, readSled } from '../../db/queries/read-sled.ts';
import { beatLeaseService } from '../../db/transactions/beat-lease-service.ts';
import { renewLease } from '../../db/transactions/renew-lease.ts';
import { marginMs, shortestGapMs, shortestLeaseMs } from '../../model/lease.ts';
import { Refusal } from '../../model/refusal.ts';
import {
  leaseGranted,
  leaseRefused,
  leaseRenewal,
  SLED_DECLARED_DEAD,
  sledIdentity,
} from '../../wire/lease-protocol.ts';
import { errorResponse } from '../../wire/operator-api/error-response.ts';
import { resourceName } from '../../wire/operator-api/names.ts';
import { agentShownIn, SLED_EXPUNGED } from '../../wire/sled-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors, IdentityRefused } from '../errors.ts';
import type { SledCaller } from './sled-identity.ts';

/**
 * Adds the endpoints by which sled agents with fencing renew their leases. `beatMs` is how often this API beats. `callerOf`
 * is the sled that has shown its certificate; where none can, only sleds without an identity renew.
 */
export function addLeaseRoutes(
  app: ApiApp,
  { db, log }: ApiContext,
  beatMs: number,
  callerOf: ((request: FastifyRequest) => SledCaller) | null = null,
): void {
  app.put(
    '/sleds/:sled_id/lease',
    {
      schema: {
        tags: ['sled agents'],
        params: z.object({ sled_id: uuid }),
        body: leaseRenewal,
        response: { 200: leaseGranted, 409: leaseRefused, '4xx': errorResponse, '5xx': errorResponse },
      },
    },
    async (request, reply) => {
      const { sled_id: sledId } = request.params;
      const { lease_ms: leaseMs, held, epoch, vmms } = request.body;
      if (callerOf !== null && callerOf(request).sledId !== sledId) throw new IdentityRefused('foreign_sled');
      if (callerOf === null && (await readSled(db, sledId))?.identified) throw new IdentityRefused('no_certificate');
      const shortest = shortestLeaseMs(beatMs);
      if (leaseMs < shortest)
        throw Refusal.invalid(`lease_ms: must be at least ${shortest} here; start the agent with a longer lease`);
      const renewal = await renewLease(db, {
        sledId,
        leaseMs,
        held,
        epoch: epoch ?? null,
        agentId: agentShownIn(request.headers) ?? null,
        livingVmmIds: vmms,
      });
      switch (renewal.outcome) {
        case 'granted':
          if (renewal.returned) log.warn({ sled_id: sledId }, 'a sled that was declared dead is in service again');
          return { epoch: renewal.epoch, margin_ms: marginMs(leaseMs) };
        case 'declared-dead':
          return reply.status(409).send({
            error_code: SLED_DECLARED_DEAD,
            message: `sled ${sledId} was declared dead: power off every guest, then renew with epoch ${renewal.epoch} and what lives then`,
            request_id: request.id,
            epoch: renewal.epoch,
            lost_vmms: [...renewal.lostVmmIds],
          });
        case 'expunged':
          return reply.status(409).send({
            error_code: SLED_EXPUNGED,
            message: `sled "${renewal.sledName}" was expunged: it gets no lease; add it as a new sled, with an empty data directory`,
            request_id: request.id,
          });
        case 'foreign-agent':
          throw new IdentityRefused('foreign_agent');
        case 'unknown':
          throw Refusal.notFound('sled', sledId);
      }
    },
  );

  app.get(
    '/sleds/by-name/:name',
    {
      schema: {
        tags: ['sled agents'],
        params: z.object({ name: resourceName }),
        response: { 200: sledIdentity, ...errors },
      },
    },
    async (request) => {
      const { name } = request.params;
      const sled = await findSledByName(db, name);
      if (sled === null) throw Refusal.notFound('sled', name);
      return { sled_id: sled.id };
    },
  );
}

/**
 * Writes down every `everyMs` milliseconds that renewals can be taken, until what it returns is called; 0 never does, and
 * then no sled is declared dead because of what this API knows. Begin it when the API listens.
 */
export function startBeating({ db, log }: Pick<ApiContext, 'db' | 'log'>, everyMs: number): () => Promise<void> {
  if (everyMs === 0) return async () => {};
  const stopped = new AbortController();
  let failures = 0;
  const run = async () => {
    while (!stopped.signal.aborted) {
      const begun = performance.now();
      try {
        await beatLeaseService(db, shortestGapMs(everyMs));
        failures = 0;
      } catch (error) {
        failures += 1;
        if (failures === 1) log.warn({ err: error }, 'leases are not judged: the database does not take a heartbeat');
      }
      const { signal } = stopped;
      await pause(Math.max(0, everyMs - (performance.now() - begun)), undefined, { signal }).catch(() => {});
    }
  };
  const running = run();
  return async () => {
    stopped.abort();
    await running;
  };
}
