/** Takes the search attributes of a test's namespace away, and gives them back. */
import { randomUUID } from 'node:crypto';
import type { Connection } from '@temporalio/client';
import { SEARCH_ATTRIBUTES } from '../../model/search-attributes.ts';
import type { Harness } from './harness.ts';
import { eventually } from './wait.ts';

/** Every attribute that Mooring writes. */
export const ATTRIBUTE_NAMES: readonly string[] = Object.values(SEARCH_ATTRIBUTES);
const KEYWORD = 2;
/** `TemporalServer`s of this kind have ten custom keywords. */
const MOST_KEYWORDS = 10;
const namespace = 'default';

const operator = ({ temporal }: Harness) => (temporal.connection as Connection).operatorService;

/** The names of the attributes that the namespace has. */
export async function registeredAttributes(harness: Harness): Promise<string[]> {
  const { customAttributes } = await operator(harness).listSearchAttributes({ namespace });
  return Object.keys(customAttributes ?? {});
}

/** Removes attributes; `refused`: in such a way that they can't be registered again, since others have taken their places. */
export async function removeAttributes(harness: Harness, names: readonly string[], refused: boolean): Promise<void> {
  const service = operator(harness);
  await service.removeSearchAttributes({ namespace, searchAttributes: [...names] });
  if (!refused) return;
  await eventually(async () => {
    const known = await registeredAttributes(harness);
    const ours = known.filter((name) => names.includes(name));
    if (ours.length > 0) await service.removeSearchAttributes({ namespace, searchAttributes: ours });
    for (let free = MOST_KEYWORDS - known.length + ours.length; free > 0; free--)
      await service
        .addSearchAttributes({ namespace, searchAttributes: { [`Other${randomUUID().slice(0, 8)}`]: KEYWORD } })
        .catch(() => {});
    const now = await registeredAttributes(harness);
    return now.length >= MOST_KEYWORDS && names.every((name) => !now.includes(name));
  }, 'the places of the attributes were never taken');
}

/** Gives the places of other attributes back, and waits until Mooring has registered its own again. */
export async function giveAttributesBack(harness: Harness): Promise<void> {
  const others = (await registeredAttributes(harness)).filter((name) => !ATTRIBUTE_NAMES.includes(name));
  if (others.length > 0) await operator(harness).removeSearchAttributes({ namespace, searchAttributes: others });
  await eventually(async () => {
    const known = await registeredAttributes(harness);
    return ATTRIBUTE_NAMES.every((name) => known.includes(name));
  }, 'they were never registered again');
}

/** What the worker and the API answer to the question whether they are ready. */
export async function askWhetherReady(harness: Harness): Promise<{ readonly status: number; readonly text: string }[]> {
  const { worker, api } = harness.stack;
  return Promise.all(
    [`${worker.metricsUrl}/readyz`, `${api.url}/readyz`].map(async (url) => {
      const answer = await fetch(url);
      return { status: answer.status, text: await answer.text() };
    }),
  );
}

/** Waits until both say that they do without search attributes. */
export async function untilWithoutAttributes(harness: Harness): Promise<void> {
  await eventually(
    async () =>
      (await askWhetherReady(harness)).every(
        ({ status, text }) => status === 200 && text.includes('search attributes'),
      ),
    'readiness never said what is missing',
  );
}
