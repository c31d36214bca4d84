/** Tokens and callers, as operators and their programs see them. */
import { z } from 'zod';
import { ACCESS_ROLES } from '../../model/access.ts';
import { timestamp } from '../sled-protocol.ts';
import { nameOrId, resourceName, uuid } from './names.ts';

/** How long a token is valid by default, and at most, in seconds: 90 days, two years. */
export const DEFAULT_TOKEN_SECONDS = 90 * 24 * 3600;
export const MAX_TOKEN_SECONDS = 2 * 365 * 24 * 3600;

export const accessRole = z.enum(ACCESS_ROLES);

export const accessTokenCreate = z.object({
  name: resourceName,
  role: accessRole,
  /** The one project that it is on; the whole fleet when absent. */
  project: nameOrId.nullish(),
  expires_in_seconds: z.number().int().min(1).max(MAX_TOKEN_SECONDS).default(DEFAULT_TOKEN_SECONDS),
});
export type AccessTokenCreate = z.input<typeof accessTokenCreate>;

export const accessTokenView = z.object({
  id: uuid,
  name: z.string(),
  role: accessRole,
  /** `null`: the whole fleet. */
  project_id: uuid.nullable(),
  time_created: timestamp,
  /** `null`: never. */
  time_expires: timestamp.nullable(),
});
export type AccessTokenView = z.infer<typeof accessTokenView>;

/** The only answer that ever shows the token itself. */
export const accessTokenCreated = accessTokenView.extend({ token: z.string() });
export type AccessTokenCreated = z.infer<typeof accessTokenCreated>;

/** Who a request is from. Source: Oxide `CurrentUser`, whose silo is this installation; the last four fields are ours. */
export const currentUserView = z.object({
  id: uuid,
  display_name: z.string(),
  silo_id: uuid,
  silo_name: z.string(),
  fleet_viewer: z.boolean(),
  silo_admin: z.boolean(),
  /** `local`: the stack's own user, who needs no token. */
  kind: z.enum(['operator', 'local']),
  role: accessRole,
  project_id: uuid.nullable(),
  time_expires: timestamp.nullable(),
});
export type CurrentUserView = z.infer<typeof currentUserView>;
