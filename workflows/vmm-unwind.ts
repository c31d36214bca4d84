/**
 * Unwinds a VMM whose start or migration is over without having ended it: someone terminated the workflow by hand. A
 * migration whose destination was commanded to migrate in is past the point of no return: it is carried forward instead.
 */
import type { UnwindInput } from '../model/workflow-inputs.ts';
import { operationError } from './failures.ts';
import { database, untilDefinitive } from './proxies.ts';
import { unwindVmm } from './unwind.ts';

export async function vmmUnwind(input: UnwindInput): Promise<{ outcome: string }> {
  if (input.kind === 'migrate') {
    const command = await database.readMigrateInCommand(input);
    if (command !== null) {
      try {
        await untilDefinitive.migrateIn({ ...input, ...command });
        return { outcome: 'carried forward' };
      } catch (error) {
        return { outcome: await unwindVmm({ ...input, error: operationError('migrate', error) }) };
      }
    }
  }
  const outcome = await unwindVmm(input);
  if (outcome === 'spared') await database.succeedOperation(input);
  return { outcome };
}
