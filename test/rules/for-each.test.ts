import fc from 'fast-check';
import { expect, test } from 'vitest';
import { forEach, throwAll } from '../../activities/for-each.ts';

test('every item has its turn, at most so many at once, whatever the others throw; and nothing thrown is lost', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ id: fc.nat(), fails: fc.boolean(), pauses: fc.nat(3) }), { maxLength: 30 }),
      fc.integer({ min: 1, max: 8 }),
      async (items, atATime) => {
        const done: unknown[] = [];
        let open = 0;
        let most = 0;
        const outcome = await forEach(items, atATime, async (item) => {
          open += 1;
          most = Math.max(most, open);
          for (let pause = 0; pause < item.pauses; pause++) await Promise.resolve();
          open -= 1;
          done.push(item);
          if (item.fails) throw new Error(`item ${item.id}`);
        }).then(
          () => null,
          (error: unknown) => error,
        );
        expect(done).toHaveLength(items.length);
        expect(most).toBeLessThanOrEqual(atATime);
        const failed = items.filter(({ fails }) => fails);
        if (failed.length === 0) expect(outcome).toBeNull();
        else for (const { id } of failed) expect((outcome as Error).message).toContain(`item ${id}`);
      },
    ),
  );
});

test('one error is thrown as it is; several are named, each once', () => {
  const one = new Error('alone');
  expect(() => throwAll([])).not.toThrow();
  expect(() => throwAll([one])).toThrow(one);
  expect(() => throwAll([one, new Error('another'), new Error('another')])).toThrow('3 errors: alone; another');
});
