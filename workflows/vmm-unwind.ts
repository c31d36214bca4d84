/** Ends a start or a migration whose workflow is over without having done so: someone terminated it by hand. */
import type { UnwindInput } from '../model/workflow-inputs.ts';
import { endAttempt } from './unwind.ts';

export async function vmmUnwind(input: UnwindInput): Promise<{ outcome: string }> {
  const { outcome } = await endAttempt(input, { cutOff: true });
  return { outcome };
}
