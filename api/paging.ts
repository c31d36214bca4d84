/** Lists in pages: where a page begins, and the token of the one after it. */
import { z } from 'zod';
import type { Page } from '../db/queries/list-affinity-groups.ts';
import type { ListOrder } from '../db/queries/list-instances.ts';
import { Refusal } from '../model/refusal.ts';
import { nameOrId } from '../wire/operator-api/names.ts';
import { DEFAULT_PAGE_LIMIT, type pageParams } from '../wire/operator-api/pages.ts';

const pageToken = z.union([
  z.object({ order: z.literal('id_ascending'), after: z.guid() }),
  z.object({ order: z.enum(['name_ascending', 'name_descending']), after: nameOrId.regex(/^[^\0]*$/) }),
]);

/** A time in a page's token, as exact as the database has it. */
export const placeTime = z
  .string()
  .regex(/^[\d :.+-]{10,40}$/)
  .refine((time) => !Number.isNaN(Date.parse(time.replace(/([+-]\d\d)$/, '$1:00'))));

/**
 * The page that a request asks for, by default the first in the order of names. A token carries its own order, as Dropshot's
 * do. Throws a {@link Refusal} for a token that this API did not give.
 */
export function readPage(query: z.infer<typeof pageParams>): Page {
  const limit = query.limit ?? DEFAULT_PAGE_LIMIT;
  if (query.page_token === undefined) return { order: query.sort_by ?? 'name_ascending', after: null, limit };
  return { ...readToken('page_token', pageToken, query.page_token), limit };
}

/** The page that a request asks for of a list that has only one order. Throws as {@link readPage}. */
export function readPageIn(order: ListOrder, query: z.infer<typeof pageParams>): Page {
  return { ...readPage(query), order };
}

/** The token of the page after this one, whose items are `rows`; `null` when there is none. */
export function nextPage(page: Page, rows: readonly { readonly id: string; readonly name: string }[]): string | null {
  const last = lastOfFull(rows, page.limit);
  if (last === null) return null;
  return writeToken({ order: page.order, after: page.order === 'id_ascending' ? last.id : last.name });
}

/** The last row of a page that is full, after which there may be more; `null` when there is none. */
export function lastOfFull<Row>(rows: readonly Row[], limit: number): Row | null {
  return rows.length < limit ? null : (rows.at(-1) ?? null);
}

/** Writes the token of a place in a list; opaque to who gets it. */
export function writeToken(place: unknown): string {
  return Buffer.from(JSON.stringify(place)).toString('base64url');
}

/** Reads a token by its schema. Throws a {@link Refusal}, which names the parameter, for one that this API did not give. */
export function readToken<Place>(parameter: string, schema: z.ZodType<Place>, token: string): Place {
  try {
    return schema.parse(JSON.parse(Buffer.from(token, 'base64url').toString('utf8')));
  } catch {
    throw Refusal.invalid(`${parameter}: not one that this API gave; begin again without it`);
  }
}
