import { z } from 'zod';

/**
 * A UUID as whoever wrote it spells it, read in its one spelling: in lower case, as PostgreSQL has it. Two spellings of one id
 * are one id. Source: RFC 9562, section 4: output is lower case, and input is not told apart by its case.
 */
export const uuid = z.guid().overwrite((id) => id.toLowerCase());
