/** How the console calls the API: by the types of its document, with the token of the session. */
import createClient from 'openapi-fetch';
import type { paths } from '../api-schema.ts';
import { signOut, token } from './session.ts';

/** The API refused, failed, or could not be reached. Its message is for people. */
export class ApiProblem extends Error {
  override readonly name = 'ApiProblem';
  /** The status; 0 where nobody answered. */
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Sends a request with the token. Throws {@link ApiProblem} where nobody answers; an answer of 401 ends the session. */
export async function send(request: Request): Promise<Response> {
  const secret = token.peek();
  if (secret !== null) request.headers.set('authorization', `Bearer ${secret}`);
  let response: Response;
  try {
    // What is kept elsewhere is not the API's word: nothing here is cached, followed elsewhere, or sent with a cookie.
    response = await fetch(request, { cache: 'no-store', credentials: 'omit', redirect: 'error' });
  } catch (error) {
    if (request.signal.aborted) throw error;
    throw new ApiProblem(0, 'the API does not answer');
  }
  if (response.status === 401 && secret !== null && secret === token.peek())
    signOut((await problemOf(response.clone())).message);
  return response;
}

/** What a failed answer says. */
export async function problemOf(response: Response): Promise<ApiProblem> {
  const body: unknown = await response.json().catch(() => null);
  const said = typeof body === 'object' && body !== null && 'message' in body ? body.message : null;
  const message = typeof said === 'string' ? said : `the API answered ${response.status} ${response.statusText}`;
  return new ApiProblem(response.status, message);
}

/** The typed client; its answers go through {@link done}. */
export const api = createClient<paths>({ baseUrl: location.origin, fetch: send });

/** The body of a successful answer. Throws {@link ApiProblem} for another one. */
export async function done<Data>(
  call: Promise<{ data?: Data | undefined; error?: unknown; response: Response }>,
): Promise<NonNullable<Data>> {
  const { data, error, response } = await call;
  if (response.ok) return data as NonNullable<Data>;
  const said = typeof error === 'object' && error !== null && 'message' in error ? error.message : null;
  throw new ApiProblem(
    response.status,
    typeof said === 'string' ? said : `the API answered ${response.status} ${response.statusText}`,
  );
}

/** What a failure says, for people. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A new name for a request, under which it may be sent again; none where the page has no such source (plain HTTP of another host). */
export function newKey(): Record<string, string> {
  return globalThis.isSecureContext ? { 'Idempotency-Key': crypto.randomUUID() } : {};
}
