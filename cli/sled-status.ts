import type { SledView } from '../wire/operator-api/sleds.ts';
import { colours, formatAge } from './format.ts';

/** Whether a sled answers, and is well: `up`, or since when it is silent, for a table. */
export function sledStatus({ silent_since: since, last_answered: last, agent }: SledView): string {
  if (since != null) return colours.red(`silent ${formatAge(Date.now() - Date.parse(since))}`);
  if (agent != null && agent.trouble.length > 0) return colours.yellow('trouble');
  return last == null ? '-' : 'up';
}
