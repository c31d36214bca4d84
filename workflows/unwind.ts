/**
 * How an attempt to make a VMM is undone (section 3 of docs/design.md). Three steps, each of which can run twice and can run
 * when nothing happened:
 *
 * 1. begin: from here on no report and no verdict is written to the VMM's row; a claim that never arrived can't any more.
 * 2. unregister: the sled's word that the VMM isn't there. A guest that was told to run, or to migrate in, is waited for
 *    as long as it takes; one that was never told is not worth a wait: its id stays dead on the sled.
 * 3. finish: `saga_unwound`, and everything that the attempt held is released; then the update saga is signalled.
 *
 * The instance's ids and generation are not touched: only the update saga clears them.
 */
import type { UnwindInput } from '../model/workflow-inputs.ts';
import { briefly, database, untilDefinitive } from './proxies.ts';

/** Unwinds a VMM. Returns `spared` when it was left alone because its guest runs, and nothing was undone. */
export async function unwindVmm(input: UnwindInput): Promise<'unwound' | 'spared'> {
  const begun = await database.beginUnwind(input);
  if (begun.spared) return 'spared';

  let confirmed = begun.sled === null;
  if (begun.sled !== null) {
    const request = { vmmId: input.vmmId, sled: begun.sled };
    if (begun.commanded) {
      await untilDefinitive.unregisterVmm(request);
      confirmed = true;
    } else {
      confirmed = await briefly.unregisterVmm(request).then(
        () => true,
        () => false,
      );
    }
  }
  await database.finishUnwind({ ...input, confirmed, neverCommanded: !begun.commanded });
  return 'unwound';
}
