import type { ProbedSled, SledClient } from '../activities/sled-client.ts';
import type { FormerAddress } from '../db/transactions/move-sled.ts';

/** How long a sled that is reported to be powered off has to answer, in milliseconds. */
const PROBE_MS = 3_000;

/**
 * Whether a sled that is reported to be powered off answers all the same, whoever it shows to be: a sled whose certificates
 * were revoked is sent nothing, and is powered on nevertheless. Throws a `CannotAsk` (503) where this process could not ask: what it
 * lacks itself is no sled's silence.
 */
export function probeSled(sleds: SledClient, sled: ProbedSled): Promise<boolean> {
  return sleds.answers(sled, PROBE_MS);
}

/**
 * What answers where a sled is, before it may be at another address: by an operator's order, or since it joins there. Whoever has
 * its guests there could not be told to end them any more.
 */
export async function askFormerAddress(sleds: SledClient, sled: ProbedSled): Promise<FormerAddress> {
  return { askedAddress: sled.address, answers: await probeSled(sleds, sled) };
}
