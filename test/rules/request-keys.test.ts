/** What a key names: what a request means, however it is written; and which refusals are kept for it. */
import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { requestKey } from '../../api/request-key.ts';
import { FINAL_REFUSALS, REFUSAL_STATUS, Refusal, type RefusalCode } from '../../model/refusal.ts';
import { instanceCreate } from '../../wire/operator-api/instances.ts';

const key = randomUUID();
const NEW = { name: 'a', description: '', hostname: 'a', ncpus: 1, memory: 2 ** 30 };

function digestOf(body: unknown): string | undefined {
  const request = { headers: { 'idempotency-key': key }, method: 'POST', routeOptions: { url: '/v1/instances' } };
  const asked = { ...instanceCreate.parse(body), project: 'p' };
  return requestKey(request as never, 'create', asked)?.digest;
}

const optional = Object.entries(instanceCreate.shape).filter(([, field]) => field.safeParse(undefined).success);

test('some fields may be left out', () => {
  expect(optional.map(([name]) => name)).toEqual(
    expect.arrayContaining(['start', 'auto_restart_policy', 'restart_priority', 'anti_affinity_groups']),
  );
});

/** Each way in which a field says what it says by being left out. */
const WAYS = optional.flatMap(([name, field]) =>
  [null, [], field.parse(undefined)]
    .filter((value) => value !== undefined && field.safeParse(value).success)
    .map((value) => [name, value] as const),
);

test.each(WAYS)('a create with %s: %j is the one that leaves it out', (name, value) => {
  expect(digestOf({ ...NEW, [name]: value })).toBe(digestOf(NEW));
  expect(digestOf({ [name]: value, ...NEW })).toBe(digestOf(NEW));
});

test.each([
  ['start', false],
  ['auto_restart_policy', 'never'],
  ['auto_restart_policy', 'best_effort'],
  ['restart_priority', 'critical'],
  ['anti_affinity_groups', ['g']],
  ['description', 'x'],
])('a create with %s: %j is another one', (name, value) => {
  expect(digestOf({ ...NEW, [name]: value })).not.toBe(digestOf(NEW));
});

test.each(Object.keys(REFUSAL_STATUS) as RefusalCode[])('%s is kept where it judges the request itself', (code) => {
  const { status, kept } = new Refusal(code, 'why');
  expect(kept).toEqual([400, 404, 409].includes(status) ? { code, message: 'why' } : null);
  expect(FINAL_REFUSALS.some((final) => final === code)).toBe(kept !== null);
});
