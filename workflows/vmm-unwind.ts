/**
 * Unwinds a VMM whose start or migration is over without having ended it: someone terminated the workflow by hand. A
 * migration whose destination was told to migrate in is past the point of no return: it is carried forward instead.
 */
import type { UnwindInput } from '../model/workflow-inputs.ts';
import { database, untilDefinitive } from './activities.ts';
import { errorBodyOf } from './failures.ts';
import { unwindVmm } from './unwind.ts';

export async function vmmUnwind(input: UnwindInput): Promise<{ outcome: string }> {
  if (input.kind === 'migrate') {
    const commanded = await database.readMigrateInCommand(input);
    if (commanded !== null) {
      try {
        await untilDefinitive.migrateIn({ ...input, ...commanded });
        return { outcome: 'carried forward' };
      } catch (error) {
        return { outcome: await unwindVmm({ ...input, error: errorBodyOf(error, 'the migration') }) };
      }
    }
  }
  const outcome = await unwindVmm(input);
  if (outcome === 'spared') await database.succeedOperation(input);
  return { outcome };
}
