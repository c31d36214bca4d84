/** How a command hears of changes: by the API's stream, or by looking time and again where an older API has none. */
import { setTimeout as pause } from 'node:timers/promises';
import {
  type EventCallOptions,
  MooringApiError,
  type MooringClient,
  type ReceivedEvent,
} from '../client/mooring-client.ts';

/** Something changed: an event, or `look`, after which all that is shown is read anew. */
export type Heard = ReceivedEvent | { readonly event: 'look' };

/**
 * Yields what changes, a `look` first. `everyMs` is how often to look at an API that knows no stream. Throws what the client throws
 * for any other reason.
 */
export async function* changes(
  client: MooringClient,
  options: EventCallOptions & { readonly everyMs: number },
): AsyncGenerator<Heard> {
  const { everyMs, ...asked } = options;
  let hasBegun = false;
  try {
    for await (const event of client.events(asked)) {
      hasBegun = true;
      yield event.event === 'reset' ? { event: 'look' } : event;
    }
  } catch (error) {
    // What isn't there, the look says in its own words.
    if (hasBegun || !(error instanceof MooringApiError) || error.status !== 404) throw error;
  }
  for (;;) {
    yield { event: 'look' };
    await pause(everyMs, undefined, asked.signal === undefined ? {} : { signal: asked.signal });
  }
}
