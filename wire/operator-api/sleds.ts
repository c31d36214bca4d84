/** Sleds, as operators and their programs see them. */
import { z } from 'zod';
import { DEATH_CAUSES, SLED_POLICIES } from '../../model/states.ts';
import { socketAddress, timestamp } from '../sled-protocol.ts';
import { MIN_MEMORY_BYTES } from './instances.ts';
import { resourceName, uuid } from './names.ts';

/** What a sled has for its VMMs. */
export const sledCapacity = {
  threads: z.number().int().min(1).max(65_536),
  /** In bytes. */
  memory: z
    .number()
    .int()
    .min(MIN_MEMORY_BYTES)
    .max(2 ** 50),
};

export const sledAdd = z.object({
  name: resourceName,
  /** Where the sled agent listens: `host:port`, by IPv4, `[IPv6]` or DNS name. */
  address: socketAddress,
  ...sledCapacity,
});
export type SledAdd = z.infer<typeof sledAdd>;

const provisionPolicy = z.enum(['provisionable', 'non_provisionable']);
export const provisionPolicyParams = z.object({ state: provisionPolicy });
export const provisionPolicyResponse = z.object({ old_state: provisionPolicy, new_state: provisionPolicy });

export const sledView = z.object({
  id: uuid,
  baseboard: z.object({ part: z.string(), serial: z.string(), revision: z.number().int() }),
  rack_id: uuid,
  policy: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('in_service'), provision_policy: provisionPolicy }),
    z.object({ kind: z.literal('expunged') }),
  ]),
  /** With the policy `expunged`: `active` as long as guests of it may still run. */
  state: z.enum(['active', 'decommissioned']),
  /**
   * What an expunge waits for before the sled's VMMs are failed: that its `lease` has lapsed; that the `sled` has ended them; or an
   * operator's `word`, given anew when it is powered off, since none of its certificates is good and it is not believed. `null`:
   * nothing. Ours.
   */
  expunge_awaits: z.enum(['lease', 'sled', 'word']).nullish(),
  usable_hardware_threads: z.number().int(),
  /** In bytes. */
  usable_physical_ram: z.number().int(),
  time_created: timestamp,
  time_modified: timestamp,
  name: z.string(),
  address: z.string(),
  threads: z.number().int(),
  /** In bytes. */
  memory: z.number().int(),
  threads_reserved: z.number().int(),
  memory_reserved: z.number().int(),
  vmm_count: z.number().int(),
  provision_state: z.enum(SLED_POLICIES),
  /** Whether it powers its guests off when it can't renew its lease; `null`: it is without fencing. Ours, as what follows. */
  lease: z
    .object({
      seconds: z.number(),
      standing: z.enum(['held', 'late', 'lapsed']),
      time_renewed: timestamp,
      time_expires: timestamp,
      fencing_since: timestamp,
    })
    .nullable(),
  /** Since when it counts as dead, and why; `null`: it doesn't. */
  declared_dead: z.object({ time: timestamp, by: z.enum(DEATH_CAUSES) }).nullable(),
  /** When it answered last, to about a minute, or renewed its lease; `null`: never. */
  last_answered: timestamp.nullish(),
  /** Since when it gives no answer, or is late with its lease; `null`: it answers. Silence proves nothing of its guests. */
  silent_since: timestamp.nullish(),
  /** What its agent says of itself; `null`: nothing, as one that others wrote. */
  agent: z.object({ id: uuid.nullable(), version: z.string().nullable(), trouble: z.array(z.string()) }).nullish(),
  /** The CPU models that guests there can be given, the one of a new guest first; `null`: its agent doesn't tell them apart. */
  cpu_models: z.array(z.string()).nullish(),
});
export type SledView = z.infer<typeof sledView>;

/** A sled as it was added or moved; `warning`: what is not as it should be, in words. */
export const sledAdded = sledView.extend({ warning: z.string().nullish() });
export type SledAdded = z.infer<typeof sledAdded>;

/**
 * Where a sled's agent listens from now on. `sled_powered_off: true`: the operator states that the machine at the former
 * address is powered off or removed, and that VMMs which are not found at the new one are lost.
 */
export const sledSetAddress = z.object({ address: socketAddress, sled_powered_off: z.boolean().default(false) });
export type SledSetAddress = z.input<typeof sledSetAddress>;

/** `sled_powered_off: true`: the operator states that the sled is powered off, and runs nothing any more. */
export const sledDeclareDead = z.object({ sled_powered_off: z.boolean().default(false) });
export type SledDeclareDead = z.input<typeof sledDeclareDead>;

/** `sled_powered_off: true`: the operator states that the sled is powered off or removed. An empty, silent one needs no word. */
export const sledExpunge = z.object({ sled_powered_off: z.boolean().default(false) });
export type SledExpunge = z.input<typeof sledExpunge>;
