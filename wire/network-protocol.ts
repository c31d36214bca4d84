/**
 * How sled agents follow the network: `GET /network/instances?after=…`. They poll, so that one that is down, or a
 * control plane that is, holds nobody up. Unknown fields are ignored, so that either side can be newer than the other.
 */
import { z } from 'zod';
import { socketAddress } from './sled-protocol.ts';
import { uuid } from './uuid.ts';

/** How many entries a page has when the poller names no limit, and the most that it may ask for. */
export const DEFAULT_NETWORK_PAGE = 1_000;
export const MAX_NETWORK_PAGE = 10_000;

/** Where one instance lives; nowhere (`null`s) once it was removed. */
const networkEntry = z.object({
  instance_id: uuid,
  sled_id: uuid.nullable(),
  vmm_id: uuid.nullable(),
  /** `ip:port` of its VMM. */
  address: socketAddress.nullable(),
  /** Rises with each change of this instance: a lower one than is known is stale. */
  generation: z.number().int().min(1),
});
export type NetworkEntry = z.infer<typeof networkEntry>;

export const networkPage = z.object({
  items: z.array(networkEntry),
  /** What to give as `after` the next time; opaque. */
  next: z.string(),
  /** There is more: ask again at once. */
  more: z.boolean(),
  /** The list begins from nothing: what is not in it, up to the page without `more`, lives nowhere. */
  reset: z.boolean(),
});
