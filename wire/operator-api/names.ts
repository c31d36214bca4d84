/**
 * What every resource of the operators' API has in common. Where the Oxide external API has the same thing as this one, its
 * names, limits and shapes hold, so that its clients work unchanged; the rest is Mooring's own and stands beside it.
 * Source: https://docs.oxide.computer/api
 */
import { z } from 'zod';

export { uuid } from '../uuid.ts';

/** A resource's name. Source: Oxide `Name`: lower-case start, letters, digits and dashes, 63 at most, not a UUID. */
export const resourceName = z
  .string()
  .min(1)
  .max(63)
  .regex(
    /^[a-z]([a-zA-Z0-9-]*[a-zA-Z0-9]+)?$/,
    'must begin with a lower-case letter, hold only letters, digits and "-", and not end with "-"',
  )
  .refine((name) => !UUID_PATTERN.test(name), 'must not be a UUID, since a name stands where an id may');
const UUID_PATTERN = /^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/;

/** Whether it is a UUID, where the API takes a name or an id. */
export function isUuid(nameOrId: string): boolean {
  return UUID_PATTERN.test(nameOrId);
}

export const nameOrId = z.string().min(1).max(63);
export const description = z.string().max(512);
