/** Looking up runs: whoever asks gets just the runs that he asked for, and a hundred who ask at once ask little. */
import type { Client } from '@temporalio/client';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RunLister } from '../../temporal/run-lister.ts';

/** A Temporal that has so many runs of each workflow, the newest first; it counts what it is asked, and may fail. */
class Runs {
  lists = 0;
  failing = false;
  readonly #runs: readonly { readonly workflowId: string; readonly runId: string }[];

  constructor(counts: ReadonlyMap<string, number>) {
    this.#runs = [...counts].flatMap(([workflowId, count]) =>
      Array.from({ length: count }, (_, index) => ({ workflowId, runId: `${workflowId}:${index}` })),
    );
  }

  get client(): Client {
    const list = async function* (this: Runs, { query }: { query: string }) {
      this.lists += 1;
      if (this.failing) throw new Error('Temporal is away');
      const ids = new Set([...query.matchAll(/"([^"]+)"/g)].map(([, id]) => id));
      yield* this.#runs.filter(({ workflowId }) => ids.has(workflowId));
    };
    return { workflow: { list: list.bind(this) } } as unknown as Client;
  }
}

const counts = fc
  .dictionary(fc.constantFrom('a', 'b', 'c', 'd', 'e'), fc.nat(2_500))
  .map((made) => new Map(Object.entries(made)));
const asks = fc.array(
  fc.record({
    ids: fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f'), { minLength: 1 }),
    most: fc.integer({ min: 1, max: 200 }),
  }),
  { minLength: 1, maxLength: 6 },
);

test('everybody gets the runs of his workflows and no others, as many as there are or as he asked for', () =>
  fc.assert(
    fc.asyncProperty(counts, asks, async (stored, asked) => {
      const lister = new RunLister(new Runs(stored).client);
      const answers = await Promise.all(asked.map(({ ids, most }) => lister.list(ids, most)));
      for (const [index, { ids, most }] of asked.entries()) {
        const got = answers[index] ?? [];
        const all = ids.reduce((sum, id) => sum + (stored.get(id) ?? 0), 0);
        expect(got.length).toBe(Math.min(most, all));
        const known: readonly string[] = ids;
        expect(got.every(({ workflowId }) => known.includes(workflowId))).toBe(true);
        expect(new Set(got.map(({ runId }) => runId)).size).toBe(got.length);
      }
    }),
    { numRuns: 25 },
  ));

test('three hundred who ask at once are answered by less than three seconds of a namespace’s lists', async () => {
  const stored = new Map(Array.from({ length: 300 }, (_, index) => [`w${index}`, 2]));
  const runs = new Runs(stored);
  const lister = new RunLister(runs.client);
  const answers = await Promise.all(
    [...stored.keys()].map((id) => lister.list([id, `${id}-stop`, `${id}-unwind`], 200)),
  );
  expect(answers.every((answer) => answer.length === 2)).toBe(true);
  expect(runs.lists).toBeLessThan(30);
});

test('a list that fails fails for those who asked for it, and for nobody after them', async () => {
  const runs = new Runs(new Map([['a', 1]]));
  const lister = new RunLister(runs.client);
  runs.failing = true;
  const both = await Promise.allSettled([lister.list(['a'], 1), lister.list(['b'], 1)]);
  expect(both.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  runs.failing = false;
  expect(await lister.list(['a'], 1)).toHaveLength(1);
});
