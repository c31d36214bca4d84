/**
 * The HTTP front that every contender but Mooring stands behind: the same web framework, the same reads before and after
 * the saga, the same handling of sled agents' reports as Mooring's API. So what differs between contenders is the saga.
 */
import { fastify } from 'fastify';
import { viewInstance } from '../../api/views/instance.ts';
import type { Database } from '../../db/connect.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readSnapshot } from '../../db/queries/read-snapshot.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { verdict } from '../../model/legality.ts';
import { needsUpdate } from '../../model/update-decision.ts';
import { sledVmmState } from '../../wire/sled-protocol.ts';

export interface FrontOptions {
  /** `null`: no database; the front then only runs what it is given. */
  readonly db: Database | null;
  readonly port: number;
  /** Runs a start to its end; throws when it was undone. */
  readonly start: (instanceId: string, generation: number) => Promise<void>;
}

/** Starts the front on 127.0.0.1. Throws when its port is taken. */
export async function startFront({ db, port, start }: FrontOptions): Promise<{ url: string; stop(): Promise<void> }> {
  const app = fastify({ forceCloseConnections: true });
  app.setErrorHandler((error, request, reply) => {
    const message = error instanceof Error ? error.message : String(error);
    void reply.status(503).send({ error_code: 'ServiceUnavailable', message, request_id: request.id });
  });
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_, body, done) =>
    done(null, body === '' ? undefined : JSON.parse(String(body))),
  );
  app.post<{ Params: { instance: string } }>('/v1/instances/:instance/start', async (request, reply) => {
    const { instance: instanceId } = request.params;
    if (db === null) {
      await start(instanceId, 1);
      return reply.status(202).send({});
    }
    const record = await readInstance(db, instanceId);
    if (record === null || verdict(record.externalState, 'start') !== 'act')
      throw new Error(`${instanceId} may not start`);
    await start(instanceId, record.instance.stateGeneration);
    const after = await readInstance(db, instanceId);
    if (after === null) throw new Error(`${instanceId} is gone`);
    return reply.status(202).send(viewInstance(after));
  });
  app.put<{ Params: { vmm_id: string } }>('/vmms/:vmm_id', async (request, reply) => {
    if (db === null) return reply.status(204).header('x-request-id', request.id).send(null);
    const applied = await applyReport(db, request.params.vmm_id, sledVmmState.parse(request.body));
    if (applied === null) return reply.status(404).send({ error_code: 'NotFound', message: 'unknown', request_id: '' });
    if (applied.verdict === 'applied') {
      const snapshot = await readSnapshot(db, applied.instanceId);
      // None of the peers has an update saga: a start's reports need none.
      if (snapshot !== null) needsUpdate(snapshot);
    }
    return reply.status(204).header('x-request-id', request.id).send(null);
  });
  await app.listen({ host: '127.0.0.1', port });
  return { url: `http://127.0.0.1:${port}`, stop: () => app.close() };
}
