import type { SledClient } from '../activities/sled-client.ts';

/** How long a sled that is reported to be powered off has to answer, in milliseconds. */
const PROBE_MS = 3_000;

/** Whether a sled that is reported to be powered off answers all the same. */
export function probeSled(
  sleds: SledClient,
  sled: { readonly name: string; readonly address: string },
): Promise<boolean> {
  return sleds.answers(sled, PROBE_MS);
}
