import { z } from 'zod';
import { SledError } from '../../activities/sled-client.ts';
import { readSled } from '../../db/queries/read-sled.ts';
import { Refusal } from '../../model/refusal.ts';
import { serialConsoleParams } from '../../wire/operator-api/instances.ts';
import { nameOrId } from '../../wire/operator-api/names.ts';
import { serialConsoleData } from '../../wire/sled-protocol.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { findInstance } from '../find-instance.ts';

const CONSOLE_CALL_MS = 5_000;

/** Adds the endpoint that passes an instance's serial console on from the sled that has its guest. */
export function addSerialConsoleRoutes(app: ApiApp, { db, sleds }: ApiContext): void {
  app.get(
    '/v1/instances/:instance/serial-console',
    {
      schema: {
        tags: ['instances'],
        params: z.object({ instance: nameOrId }),
        querystring: serialConsoleParams,
        response: { 200: serialConsoleData, ...errors },
      },
    },
    async (request) => {
      const { project: owner, from_start, most_recent, max_bytes } = request.query;
      const { instance, active } = await findInstance(db, request.params.instance, owner);
      const host = active?.sledId == null ? null : await readSled(db, active.sledId);
      if (active === null || host === null)
        throw Refusal.conflict(`instance "${instance.name}" has no VM: start it, then look at its console`);
      const fromOffset = most_recent === undefined ? (from_start ?? 0) : -most_recent;
      try {
        return await sleds.readConsole(host, active.id, { fromOffset, maxBytes: max_bytes }, CONSOLE_CALL_MS);
      } catch (error) {
        if (!(error instanceof SledError)) throw error;
        const message = `instance "${instance.name}": its console can't be read: ${error.message}`;
        throw error.kind === 'refused' ? Refusal.conflict(message) : Refusal.unavailable(`${message}; try again`);
      }
    },
  );
}
