/** Projects and their quotas, as operators and their programs see them. */
import { z } from 'zod';
import { timestamp } from '../sled-protocol.ts';
import { description, resourceName, uuid } from './names.ts';

export const projectView = z.object({
  id: uuid,
  name: z.string(),
  description: z.string(),
  time_created: timestamp,
  time_modified: timestamp,
});
export type ProjectView = z.infer<typeof projectView>;

export const projectCreate = z.object({ name: resourceName, description });
export type ProjectCreate = z.infer<typeof projectCreate>;
export const projectUpdate = z.object({ name: resourceName.nullish(), description: description.nullish() });

/** A project's quota; `null` is unlimited. `memory` is in bytes. */
export const quotaUpdate = z.object({
  cpus: z.number().int().min(0).max(1_000_000_000).nullable(),
  memory: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).nullable(),
});
export type QuotaUpdate = z.infer<typeof quotaUpdate>;
export const quotaView = quotaUpdate.extend({ cpus_in_use: z.number().int(), memory_in_use: z.number().int() });
export type QuotaView = z.infer<typeof quotaView>;
