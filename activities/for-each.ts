/**
 * Does the same for every item, at most `atATime` of them at once; each has its turn, whatever became of the others. Then
 * throws what was thrown: the error itself, or an `AggregateError` that names each of them once.
 */
export async function forEach<Item>(
  items: readonly Item[],
  atATime: number,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  const queue = [...items];
  const errors: unknown[] = [];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift())
      await work(item).catch((error: unknown) => errors.push(error));
  };
  await Promise.all(Array.from({ length: Math.min(atATime, items.length) }, worker));
  throwAll(errors);
}

/** Throws the errors of several tries: nothing for none, the error itself for one. */
export function throwAll(errors: readonly unknown[]): void {
  if (errors.length === 0) return;
  if (errors.length === 1) throw errors[0];
  const messages = new Set(errors.map((error) => (error instanceof Error ? error.message : String(error))));
  throw new AggregateError(errors, `${errors.length} errors: ${[...messages].join('; ')}`);
}
