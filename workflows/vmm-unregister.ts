/** Ends a VMM that still lives although no instance names it: retried until its sled has answered for certain. */
import type { VmmUnregisterInput } from '../model/workflow-inputs.ts';
import { unregisterLeftover } from './steps.ts';

export async function vmmUnregister(input: VmmUnregisterInput): Promise<{ outcome: string }> {
  return { outcome: await unregisterLeftover(input) };
}
