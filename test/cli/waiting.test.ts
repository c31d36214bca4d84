/** What the client library bears while it waits for something to end. */
import { fastify } from 'fastify';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MooringApiError, MooringClient } from '../../client/mooring-client.ts';
import type { DrainView } from '../../wire/operator-api/drains.ts';
import type { OperationView } from '../../wire/operator-api/operations.ts';

const ID = '00000000-0000-4000-8000-000000000001';
const operation: OperationView = {
  id: ID,
  kind: 'start',
  instance_id: ID,
  state: 'done',
  outcome: 'succeeded',
  error: null,
  progress: null,
  time_started: '2026-01-01T00:00:00Z',
  time_ended: '2026-01-01T00:00:01Z',
  web_ui: null,
};
const drain: DrainView = {
  sled_id: ID,
  state: 'drained',
  summary: 'sled-1 is drained: 1 of 1 moved',
  total: 1,
  moved: 1,
  ended: 0,
  moving: [],
  waiting: [],
  could_not_move: [],
  parallel: 4,
  time_started: '2026-01-01T00:00:00Z',
  time_ended: '2026-01-01T00:00:01Z',
  web_ui: null,
};

/** What the API answers next; the last one for ever. */
let answers: { status: number; body: unknown }[] = [];
let requests = 0;
const app = fastify();
let client: MooringClient;
beforeAll(async () => {
  app.get('/*', async (_, reply) => {
    requests += 1;
    const next = (answers.length > 1 ? answers.shift() : answers[0]) ?? { status: 500, body: {} };
    return reply.status(next.status).send(next.body);
  });
  client = new MooringClient({ url: await app.listen({ host: '127.0.0.1', port: 0 }) });
});
afterAll(() => app.close());

const failure = (status: number) => ({ status, body: { error_code: 'Some', message: 'ask again', request_id: 'r' } });
const waits = {
  drain: { over: drain, wait: () => client.waitForDrain(ID) },
  operation: { over: operation, wait: () => client.waitForOperation(ID) },
};

test.each(['drain', 'operation'] as const)('a 503 means “ask again” to who waits for a(n) %s', async (what) => {
  const { over, wait } = waits[what];
  answers = [failure(503), failure(503), { status: 200, body: over }];
  requests = 0;
  expect(await wait()).toEqual(over);
  expect(requests).toBe(3);
});

test.each(['drain', 'operation'] as const)(
  'what asking again can’t mend ends the wait for a(n) %s at once',
  async (what) => {
    answers = [failure(404)];
    requests = 0;
    await expect(waits[what].wait()).rejects.toThrow(MooringApiError);
    expect(requests).toBe(1);
  },
);

test('a wait that is called off ends, also while the API is unavailable', async () => {
  answers = [failure(503)];
  requests = 0;
  const stop = new AbortController();
  const waiting = client.waitForDrain(ID, { signal: stop.signal });
  stop.abort(new Error('called off'));
  await expect(waiting).rejects.toThrow('called off');
});
