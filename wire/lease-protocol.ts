/**
 * How a sled agent with fencing renews its lease: `PUT /sleds/{sled_id}/lease` on the control plane (section 10 of docs/design.md). An agent that never calls it is without fencing.
 */
import { z } from 'zod';
import { MAX_LEASE_MS } from '../model/lease.ts';
import { uuid } from './uuid.ts';

export const leaseRenewal = z.object({
  /** How long after it sent this the agent powers its guests off unless another renewal succeeds, in milliseconds. */
  lease_ms: z.number().int().min(1).max(MAX_LEASE_MS),
  /**
   * Whether the agent holds a lease as it sends this: it may have received no answer for long. No VMM is placed on a sled
   * that doesn't.
   */
  held: z.boolean().default(true),
  /**
   * The last epoch that the agent received. A sled that was declared dead is in service again only by a renewal that names
   * the new one: what it reports was composed after the declaration, however late the network delivers it.
   */
  epoch: z.number().int().min(0).nullish(),
  /** The VMMs that live on the sled: all that are neither failed nor destroyed. */
  vmms: z.array(uuid).max(100_000),
});
export type LeaseRenewal = z.input<typeof leaseRenewal>;

export const leaseGranted = z.object({
  epoch: z.number().int(),
  /** How much longer than the lease the control plane waits before it calls the guests lost, in milliseconds. */
  margin_ms: z.number(),
});

/** The sled was declared dead: nothing of what is listed may run there. */
export const SLED_DECLARED_DEAD = 'SLED_DECLARED_DEAD';

/** Why a renewal failed, where the answer is the control plane's own. */
export const leaseRefused = z.object({
  error_code: z.string().optional(),
  message: z.string(),
  request_id: z.string(),
  /** With `SLED_DECLARED_DEAD`: the epoch to name, together with a report of what lives then. */
  epoch: z.number().int().nullish(),
  /** With `SLED_DECLARED_DEAD`: the reported VMMs that are lost and must not live. */
  lost_vmms: z.array(z.string()).nullish(),
});

/** What `GET /sleds/by-name/{name}` answers: how an agent finds out which sled it is. */
export const sledIdentity = z.object({ sled_id: uuid });
