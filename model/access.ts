/** Who may do what: roles, and the decision whether a caller may. Pure; the permission of each endpoint is in `permissions.ts`. */

/** From the least to the most: each may do what those before it may. Source: the Oxide API's roles of a silo and a project. */
export const ACCESS_ROLES = ['viewer', 'collaborator', 'admin'] as const;
export type AccessRole = (typeof ACCESS_ROLES)[number];

/** Whether a role includes another one. */
export function includesRole(role: AccessRole, needed: AccessRole): boolean {
  return ACCESS_ROLES.indexOf(role) >= ACCESS_ROLES.indexOf(needed);
}

/** What an access token is, apart from its secret. `projectId` is `null` for one on the whole fleet. */
export interface TokenIdentity {
  readonly id: string;
  readonly name: string;
  readonly role: AccessRole;
  readonly projectId: string | null;
}

/**
 * Who sends a request: an operator, by a token; the local operator of a stack that listens on the loopback address alone
 * and asks for no token; a sled agent (`sledId` is `null` where nothing has proved which one).
 */
export type Caller =
  | { readonly kind: 'operator'; readonly token: TokenIdentity }
  | { readonly kind: 'local' }
  | { readonly kind: 'sled'; readonly sledId: string | null };

/** Whose word an audit record keeps: a caller's, or what acted by itself (`system`), or who held the database (`database`). */
export const AUDIT_ACTORS = ['operator', 'local', 'sled', 'system', 'database'] as const;
export type AuditActor = (typeof AUDIT_ACTORS)[number];

/** How an action that is on record ended; `unknown` when nobody could write it down. Source: Oxide `AuditLogEntryResult`. */
export const AUDIT_RESULTS = ['success', 'error', 'unknown'] as const;

/** What must be held: a role, on the fleet, or on the project that the request is about (which one on the fleet includes). */
export interface NeededRole {
  readonly role: AccessRole;
  readonly on: 'fleet' | 'project';
}

/**
 * Whether a token may do what needs a role. `projectIds` are the projects that the request is about, none for what belongs
 * to the fleet. `hidden`: it may not even know that the subject exists.
 */
export function judgeAccess(
  token: Pick<TokenIdentity, 'role' | 'projectId'>,
  needed: NeededRole,
  projectIds: readonly string[],
): 'allowed' | 'forbidden' | 'hidden' {
  if (token.projectId !== null && projectIds.some((id) => id !== token.projectId)) return 'hidden';
  if (!includesRole(token.role, needed.role)) return 'forbidden';
  if (token.projectId !== null && needed.on === 'fleet') return 'forbidden';
  return 'allowed';
}
