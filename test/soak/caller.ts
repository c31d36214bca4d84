/** How the soak makes a call: whatever comes of it is an outcome, never an error. */
import { Agent, request } from 'undici';

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
      const response = await request(url + path, {
        method,
        dispatcher: this.#dispatcher,
        headers: { ...headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(limitMs),
      });
      const text = await response.body.text();
      const location = [response.headers.location ?? []].flat()[0];
      return { status: response.statusCode, body: parse(text), location, tooLate: false };
    } catch (error) {
      return { status: null, body: null, tooLate: error instanceof Error && error.name === 'TimeoutError' };
    }
  }

  close(): Promise<void> {
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
