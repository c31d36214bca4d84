/** Lists come in pages. */
import { z } from 'zod';

/** The page size of a list that names none, and the largest that may be asked for. Source: Dropshot's defaults. */
export const DEFAULT_PAGE_LIMIT = 100;
const MAX_PAGE_LIMIT = 10_000;

/** One page of a list. `next_page` is the token of the page after it; `null` on the last. */
export function resultsPage<Item extends z.ZodType>(item: Item) {
  return z.object({ items: z.array(item), next_page: z.string().nullable() });
}
export type ResultsPage<Item> = { items: Item[]; next_page: string | null };

/** Query strings carry text: a page's parameters are coerced. */
export const pageParams = z.object({
  limit: z.coerce.number().int().min(1).max(MAX_PAGE_LIMIT).optional(),
  page_token: z.string().max(1024).optional(),
  sort_by: z.enum(['id_ascending', 'name_ascending', 'name_descending']).optional(),
});
