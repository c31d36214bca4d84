/** Where a reader of changes stands, as the text that it keeps. */
import { expect, test } from 'vitest';
import { readChangeCursor, writeChangeCursor } from '../../db/queries/read-changes.ts';

test.each([
  '',
  '.',
  'abc',
  '0123456789ab.',
  '0123456789ab.3:2:',
  '0123456789ab.1:9:20',
  '0123456789ab.1:2:x',
  '0123456789ab.1:99999999999999999999:',
  "0123456789ab.1:2:'",
  `0123456789ab.1:2:${'1,'.repeat(600)}1`,
])('what is no cursor is read as none: %j', (text) => {
  expect(readChangeCursor(text)).toBeNull();
});

test('a cursor with many open transactions is short, and names the oldest', () => {
  const open = Array.from({ length: 300 }, (_, at) => 1_000_000 + at);
  const text = writeChangeCursor({ history: '0123456789ab', snapshot: `1000000:1000300:${open.join(',')}` });
  expect(text).toBe('0123456789ab.1000000:1000000:');
  expect(readChangeCursor(text)).not.toBeNull();
});
