import { z } from 'zod';
import { isSledExpunged } from '../../db/queries/is-sled-expunged.ts';
import { networkCursor, readNetworkChanges } from '../../db/queries/read-network-changes.ts';
import { DEFAULT_NETWORK_PAGE, MAX_NETWORK_PAGE, networkPage } from '../../wire/network-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors, IdentityRefused } from '../errors.ts';
import { readToken, writeToken } from '../paging.ts';

/** Adds the endpoint that sled agents poll for where instances live. */
export function addNetworkRoutes(app: ApiApp, { db }: ApiContext): void {
  app.get(
    '/network/instances',
    {
      schema: {
        tags: ['sled agents'],
        querystring: z.object({
          after: z.string().max(1024).optional(),
          limit: z.coerce.number().int().min(1).max(MAX_NETWORK_PAGE).optional(),
          // Which sled's VMMs live where this is asked from: an agent that others wrote need not say it.
          sled_id: uuid.optional(),
        }),
        response: { 200: networkPage, ...errors },
      },
    },
    async (request) => {
      const { after, limit, sled_id: sledId } = request.query;
      if (sledId !== undefined && (await isSledExpunged(db, sledId))) throw new IdentityRefused('expunged');
      const at = after === undefined ? null : readToken('after', networkCursor, after);
      const { entries, cursor, more, reset } = await readNetworkChanges(db, at, limit ?? DEFAULT_NETWORK_PAGE);
      return {
        items: entries.map(({ instance_id, sled_id, vmm_id, ip, port, generation }) => ({
          instance_id,
          sled_id,
          vmm_id,
          address: ip === null ? null : `${ip}:${port}`,
          generation,
        })),
        next: writeToken(cursor),
        more,
        reset,
      };
    },
  );
}
