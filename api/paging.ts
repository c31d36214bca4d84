import { z } from 'zod';
import type { ListOrder } from '../db/queries/read-instance.ts';
import { Refusal } from '../model/refusal.ts';
import { nameOrId } from '../wire/operator-api/names.ts';

const pageToken = z.union([
  z.object({ order: z.literal('id_ascending'), after: z.guid() }),
  z.object({ order: z.enum(['name_ascending', 'name_descending']), after: nameOrId.regex(/^[^\0]*$/) }),
]);

/** Where a page begins: after the item that `after` names. A token carries its own order, as Dropshot's do. */
export function readPage(token: string | undefined, order: ListOrder): { order: ListOrder; after: string | null } {
  if (token === undefined) return { order, after: null };
  try {
    return pageToken.parse(JSON.parse(Buffer.from(token, 'base64url').toString('utf8')));
  } catch {
    throw Refusal.invalid('page_token: not one that this API gave; begin again without it');
  }
}

/** The token of the page after the item that `after` names. */
export function writePage(order: ListOrder, after: string): string {
  return Buffer.from(JSON.stringify({ order, after })).toString('base64url');
}
