import { sql } from 'drizzle-orm';
import { isGoneVmmState, VMM_STATES } from '../model/states.ts';

/** The states of a VMM that is gone, as SQL's text: `state IN ${GONE}`. In the order of the partial indexes' conditions. */
export const GONE = `(${VMM_STATES.filter(isGoneVmmState)
  .sort()
  .map((state) => `'${state}'`)
  .join(', ')})`;

/** {@link GONE} as a part of a statement. */
export const goneStates = sql.raw(GONE);
