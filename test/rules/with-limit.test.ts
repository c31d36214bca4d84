import { expect, test } from 'vitest';
import { withLimit } from '../../platform/host/with-limit.ts';

const NEVER_MS = 600_000;
/** What goes on until its signal ends it. */
const untilEnded = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener('abort', () => reject(signal.reason));
  });

test('what is done in time is what it comes to, or throws', async () => {
  const over = new AbortController();
  expect(await withLimit(NEVER_MS, over.signal, async () => 'done')).toBe('done');
  await expect(
    withLimit(NEVER_MS, over.signal, async () => {
      throw new Error('it broke');
    }),
  ).rejects.toThrow('it broke');
});

test('what takes too long is ended by a time-out', async () => {
  const over = new AbortController();
  await expect(withLimit(1, over.signal, untilEnded)).rejects.toMatchObject({ name: 'TimeoutError' });
});

test('what is over, before or meanwhile, is ended for that reason', async () => {
  const over = new AbortController();
  const running = withLimit(NEVER_MS, over.signal, untilEnded);
  over.abort(new Error('stopped'));
  await expect(running).rejects.toThrow('stopped');
  await expect(withLimit(NEVER_MS, over.signal, untilEnded)).rejects.toThrow('stopped');
});
