/** Who looks: nobody where the stack is open, else whoever holds a token, which is kept as long as the tab is open. */
import { signal } from '@preact/signals';
import { judgeAccess } from '../../model/access.ts';
import { PERMISSIONS, type Permission } from '../../model/permissions.ts';
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

const BY_OPERATION: ReadonlyMap<string, Permission> = new Map(
  Object.values(PERMISSIONS).map((permission) => [permission.operation, permission]),
);

/**
 * Whether one may do what an operation of the API does, by the same table by which the API decides: what would be refused is not
 * shown. `projectId` is whose thing it is; without it, the fleet's.
 */
export function may(operation: string, projectId?: string): boolean {
  return mayAs(me.value, operation, projectId);
}

/** The same for somebody who is given: pure. */
export function mayAs(who: Me | null, operation: string, projectId?: string): boolean {
  const permission = BY_OPERATION.get(operation);
  if (permission === undefined || who === null) return false;
  if (who.kind === 'local') return permission.needs !== 'sled';
  const { needs } = permission;
  if (needs === 'anyone' || needs === 'known') return true;
  if (needs === 'sled') return false;
  if (needs === 'sled or viewer') return who.project_id === null;
  const identity = { role: who.role, projectId: who.project_id };
  return judgeAccess(identity, needs, projectId === undefined ? [] : [projectId]) === 'allowed';
}
