import { z } from 'zod';
import { AFFINITY_POLICIES, FAILURE_DOMAINS } from '../../model/states.ts';
import { timestamp } from '../sled-protocol.ts';
import { externalStateSchema } from './instances.ts';
import { description, resourceName, uuid } from './names.ts';

/** Affinity and anti-affinity groups have one shape. Source: Oxide `AffinityGroup` and `AntiAffinityGroup`. */
export const affinityGroupCreate = z.object({
  name: resourceName,
  description,
  policy: z.enum(AFFINITY_POLICIES),
  failure_domain: z.enum(FAILURE_DOMAINS),
});
export type AffinityGroupCreate = z.infer<typeof affinityGroupCreate>;

export const affinityGroupUpdate = z.object({ name: resourceName.nullish(), description: description.nullish() });
export type AffinityGroupUpdate = z.infer<typeof affinityGroupUpdate>;

export const affinityGroupView = z.object({
  id: uuid,
  name: z.string(),
  description: z.string(),
  policy: z.enum(AFFINITY_POLICIES),
  failure_domain: z.enum(FAILURE_DOMAINS),
  project_id: uuid,
  time_created: timestamp,
  time_modified: timestamp,
});
export type AffinityGroupView = z.infer<typeof affinityGroupView>;

export const affinityGroupMember = z.object({
  type: z.literal('instance'),
  value: z.object({ id: uuid, name: z.string(), run_state: externalStateSchema }),
});
export type AffinityGroupMember = z.infer<typeof affinityGroupMember>;
