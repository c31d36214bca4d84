/**
 * Carries a recorded stop to whichever VMM has, or may get, the guest, until a sled has taken it, every VMM is gone, or
 * the user wants it to run again. The stop itself is the recorded intent; this only delivers it, and is started again by
 * the updater scan if someone terminates it.
 */
import type { InstanceStopInput } from '../model/workflow-inputs.ts';
import { deliverStop } from './steps.ts';

export async function instanceStop(input: InstanceStopInput): Promise<{ outcome: string }> {
  return { outcome: await deliverStop(input) };
}
