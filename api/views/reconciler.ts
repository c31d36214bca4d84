import type { ReconcilerName, ReconcilerPass } from '../../model/reconcilers.ts';
import type { ReconcilerPassView } from '../../wire/operator-api/reconcilers.ts';

/** What a pass found and did as the API answers it: the names of the counts in snake_case. */
export function viewReconcilerPass(name: ReconcilerName, { summary, found }: ReconcilerPass): ReconcilerPassView {
  const snake = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return { name, summary, found: Object.fromEntries(Object.entries(found).map(([key, value]) => [snake(key), value])) };
}
