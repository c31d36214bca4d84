/** Who looks: nobody where the stack is open, else whoever holds a token, which is kept as long as the tab is open. */
import { signal } from '@preact/signals';
import { mayAs, type OperationName } from './permitted.ts';
import type { Me } from './types.ts';

const KEY = 'mooring-token';

/** The token, `null` without one. No cookie: it is sent by this page alone, and gone with its tab. */
export const token = signal<string | null>(sessionStorage.getItem(KEY));
/** Who the API says one is; `null` until it has. */
export const me = signal<Me | null>(null);
/** Why one has to log in (again); `null` where nothing is to be said. */
export const loginReason = signal<string | null>(null);

/** Takes a token, for as long as this tab is open. */
export function signIn(secret: string): void {
  sessionStorage.setItem(KEY, secret);
  token.value = secret;
}

/** Forgets the token and who one was; `reason` is shown where one logs in again. */
export function signOut(reason: string | null): void {
  sessionStorage.removeItem(KEY);
  token.value = null;
  me.value = null;
  loginReason.value = reason;
}

/**
 * Whether one may do what an operation of the API does: what would be refused is not shown. `projectId` is whose thing it is;
 * without it, the fleet's.
 */
export function may(operation: OperationName, projectId?: string): boolean {
  return mayAs(me.value, operation, projectId);
}
