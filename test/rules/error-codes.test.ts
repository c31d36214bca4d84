/** docs/client.md has every code that an error of the API may have, with its status. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { describeError, IdentityRefused } from '../../api/errors.ts';
import { IDENTITY_REFUSALS } from '../../model/identity.ts';
import { REFUSAL_STATUS } from '../../model/refusal.ts';
import { HTTP_ERROR_CODES } from '../../platform/http/http-errors.ts';

test('every code is in the table, beside its status', async () => {
  const page = await readFile(new URL('../../docs/client.md', import.meta.url), 'utf8');
  const chapter = page.slice(page.indexOf('## Error codes'));
  const codes = [
    ...Object.entries(REFUSAL_STATUS).map(([code, status]) => [status, code] as const),
    ...Object.entries(HTTP_ERROR_CODES).map(([status, code]) => [Number(status), code] as const),
    ...[...IDENTITY_REFUSALS.map((refusal) => new IdentityRefused(refusal)), new Error('any other')].map((error) => {
      const { status, code } = describeError(error);
      return [status, code] as const;
    }),
  ];
  // A row of the table, or a part of a sentence that begins with the status.
  const parts = chapter.split(/\n(?=\|)|(?<=[:;]) /);
  const missing = codes.filter(
    ([status, code]) => !parts.some((part) => part.includes(String(status)) && part.includes(`\`${code}\``)),
  );
  expect(missing).toEqual([]);
});
