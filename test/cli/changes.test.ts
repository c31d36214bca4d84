/** How commands hear of changes: by the stream, and without one by looking. */
import { expect, test } from 'vitest';
import { changes } from '../../cli/changes.ts';
import { MooringApiError, type MooringClient, type ReceivedEvent } from '../../client/mooring-client.ts';

/** A client whose stream yields this, then fails. */
function clientOf(events: readonly ReceivedEvent[], failure: Error): MooringClient {
  return {
    async *events() {
      yield* events;
      throw failure;
    },
  } as unknown as MooringClient;
}
const RESET: ReceivedEvent = { event: 'reset', data: { reason: 'begin', time: '2026-11-30T12:00:00.000Z' }, id: '1' };
const refused = (status: number) => new MooringApiError(status, { message: 'refused' });

async function take(client: MooringClient, most: number): Promise<string[]> {
  const heard: string[] = [];
  for await (const { event } of changes(client, { everyMs: 0 })) {
    heard.push(event);
    if (heard.length === most) break;
  }
  return heard;
}

test('an older API, which knows no stream, is looked at time and again', async () => {
  expect(await take(clientOf([], refused(404)), 3)).toEqual(['look', 'look', 'look']);
});

test('a stream says when to look, and what changed', async () => {
  const gone: ReceivedEvent = { event: 'instance', data: { id: 'a', project_id: 'b', object: null }, id: '2' };
  expect(await take(clientOf([RESET, gone], refused(404)), 2)).toEqual(['look', 'instance']);
});

test.each([401, 403, 500])('a stream that is refused with %i is no older API', async (status) => {
  await expect(take(clientOf([], refused(status)), 1)).rejects.toMatchObject({ status });
});

test('nor is one that was there', async () => {
  await expect(take(clientOf([RESET], refused(404)), 5)).rejects.toMatchObject({ status: 404 });
});
