/** How the soak makes a call: whatever comes of it is an outcome, never an error. */
import { setMaxListeners } from 'node:events';
import { Agent, request } from 'undici';
import { withLimit } from '../../platform/host/with-limit.ts';

export interface Answer {
  /** `null`: none. */
  readonly status: number | null;
  readonly body: unknown;
  readonly location?: string | undefined;
  /** There was none within the limit. */
  readonly tooLate: boolean;
}

export class Caller {
  readonly #dispatcher = new Agent({ connections: 512 });
  readonly #closed = new AbortController();

  constructor() {
    // One listener for each call on its way.
    setMaxListeners(0, this.#closed.signal);
  }

  /** Makes a call, and waits `limitMs` milliseconds for its answer. A body that is no JSON is given as text. */
  async send(
    url: string,
    method: 'GET' | 'POST' | 'PUT' | 'DELETE',
    path: string,
    body: unknown,
    limitMs: number,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Answer> {
    try {
      return await withLimit(limitMs, this.#closed.signal, async (signal) => {
        const response = await request(url + path, {
          method,
          dispatcher: this.#dispatcher,
          headers: { ...headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
          signal,
        });
        const text = await response.body.text();
        const location = [response.headers.location ?? []].flat()[0];
        return { status: response.statusCode, body: parse(text), location, tooLate: false };
      });
    } catch (error) {
      return { status: null, body: null, tooLate: error instanceof Error && error.name === 'TimeoutError' };
    }
  }

  close(): Promise<void> {
    this.#closed.abort();
    return this.#dispatcher.destroy();
  }
}

function parse(text: string): unknown {
  if (text === '') return null;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
