/**
 * The instance-update saga: brings an instance's record in line with what its VMMs and its migration have come to. One
 * workflow per instance, signalled (and started) by whoever writes a fact that may need one. What it decides is section
 * 6 of docs/design.md, as `decideUpdate` in model/update-decision.ts; this head says why it may decide beside everybody
 * else.
 *
 * # Theory of operation
 *
 * It never undoes anything: there is nothing to undo. Sled agents and sagas write *facts* (a VMM's state, a side of a
 * migration); the instance's ids, its reservations and its charge must *follow* from them. Between the two the record
 * is behind, never wrong: what people see is derived from the facts (model/external-state.ts), and a start or a
 * migration may be claimed over what a failed one left. So no update has to be quick, and none is waited for, except by
 * a migrate that finds a target that failed on its sled.
 *
 * Its one step is one transaction, `commit-update`. It locks the instance, all its undeleted VMMs and its migration, in
 * this order. Under these locks nobody else changes what it reads: it takes a snapshot, decides and writes, in rounds,
 * until a fresh snapshot needs nothing, and one commit brings the record in line with all that was known when the locks
 * were taken. What must happen on sleds comes after it: a VMM that nobody names is ended and a stop is carried, each by
 * a workflow of its own; the one sled that can settle what became of a guest is asked, and if it has news, the
 * transaction is run once more.
 *
 * # Who writes what
 *
 * By the tags of the transactions in db/transactions/; db/invariants/history.ts checks it against what was really
 * written.
 *
 *   instance.active_vmm_id      claim-start sets it, over NULL or a `saga_unwound` VMM; commit-update moves, clears it
 *   target_vmm_id, migration_id claim-migration sets them, likewise; commit-update clears them
 *   instance.state              follows the ids; also record-stop (failed to no_vmm) and delete-instance
 *   instance.state_generation   whoever changes one of these four raises it by one; a trigger insists
 *   instance.intended_state     the user (record-stop, record-running-intent, delete-instance), claim-start, and
 *                               commit-update: `guest_shutdown`, only over the intent that its snapshot had
 *   vmm.state, its generation   the sled agent, through apply-report; the control plane's verdicts (fail-vmm,
 *                               force-stop, declare-dead, expunge-sled); finish-unwind: `saga_unwound`
 *   vmm.unwinding_since         begin-unwind, once; after it only finish-unwind writes that VMM's state
 *   vmm.commanded_at            apply-report, with the answer to `register`, if the user still wants it to run
 *   vmm.time_deleted            commit-update; a claim, for the leftover that it replaces
 *   migration sides             apply-report, each side by its own VMM; finish-unwind, force-stop, declare-dead,
 *                               expunge-sled: failed
 *   sled_reservation            claims make it; commit-update changes its kind or releases it; finish-unwind releases
 *                               it, or leaves it tombstoned for release-unwound and for who gives the sled up
 *   provisioning_charge         claim-start takes it; commit-update and finish-unwind give it back
 *   operation                   claims give it its VMM; its outcome is written once: apply-report or succeed-operation,
 *                               begin-unwind where it spares the guest, finish-unwind, refuse-operation
 *   instance_network            claim-start, commit-update, finish-unwind, within the statement that makes it true
 *
 * The reaper (`reap`) deletes what should not exist; it passes over rows that somebody else has locked.
 *
 * # Why each race is harmless
 *
 * Report and update. Both lock the VMM, then the migration: the report commits before the snapshots and is in them, or
 *   it comes after and finds what was decided. Then its handler judges by what is stored *now* and signals; only then the
 *   agent hears 204, so a handler that dies in between has the report sent again. One that can't need an update says so
 *   in its own statement (`needsUpdate` in apply-report) and saves the snapshot.
 * Unwind and update. An unwind touches neither ids nor generation, so it can't disturb this guard; finish-unwind begins
 *   by locking the instance, so it runs before the update or after it. A VMM that is being unwound is nobody else's: no
 *   report or verdict is written to it, an update neither unregisters it nor makes it active. When it is `saga_unwound`
 *   it is as good as destroyed; its row stays until its reservation is gone.
 * Claim and update. A claim is one statement guarded by the generation at which it read. If the update clears ids
 *   first, the guard is lost and the claim reads again; if the claim is first, the update has waited for
 *   the instance, and its next statement locks the new VMM too. Both may retire the leftover's row: it is retired once. A start may replace the VMM of a migration whose target is
 *   still linked: that migration is then about nobody ("not moved"), and the new VMM stays.
 * A claim that arrives after its unwind. begin-unwind has burnt the id: the insert fails, and with it the whole
 *   statement. So it does where the operation was refused, or had nothing to do: one that is over takes no VMM.
 * A step and another run of its own saga, which a lost workflow task leaves behind. All speak of the same ids. A claim
 *   that was made is returned; of a claim and an end without one the operation's row lets one pass. From then on the
 *   VMM's row decides: success is written only under its lock while it is not marked as unwinding, and it is marked
 *   only while no success is written.
 * Stop and update. The stop locks the instance and writes the intent. An update before it may have ended the instance by
 *   the old intent: then record-stop finds Failed and makes it Stopped, raising the generation. An update after it reads
 *   the intent: what ends, ends Stopped; what may still run has the stop carried to it, wherever it has moved.
 * Delete and update. Over a leftover, delete changes neither ids nor state: this saga works on deleted instances too,
 *   clears the ids and writes `destroyed`. Without one there is nothing for it to clear.
 * Verdict and report. A verdict (fail-vmm) on a VMM that the instance names needs the sled's own `NO_SUCH_INSTANCE`,
 *   asked for that VMM by name. It is not written to a VMM that is gone, unwinding, or still `creating`; and after it
 *   no report brings the VMM back, whatever its generation. It says nothing of the migration's side: if the guest may
 *   have left, only the target's word settles it (case 4).
 * Giving up a sled (expunge-sled, declare-dead) and update. These lock the sled first, an update locks it last, through
 *   the sums of its reservations: PostgreSQL breaks one of the two off, and `retryOnConflict` in db/errors.ts runs it
 *   again. A claim on that sled waits for its row too, and is refused by it. A finish-unwind has seen the decision, or
 *   comes before it and has its tombstone released by it.
 * Force-stop and update. It locks the instance, and looks again which VMMs it names: where a migration was claimed
 *   since the sleds were asked, it writes nothing and they are asked again. What it fails, an update then finds failed.
 * Two updates. One workflow id is one run at a time, but an attempt that timed out may still be at work: the second
 *   waits for the instance's row, then finds nothing to do. What they begin on sleds are singletons by id.
 * Signals. `needed` is set back before the step that answers it, so a signal during the step means one more, and a
 *   hundred of them mean one more. One that arrives while the workflow completes (or continues as new) makes the server
 *   refuse that and hand the signal over. A run that continues as new begins with the step.
 * Everything lost. Whether an update is needed is computed from what is stored, never from what a call has changed. The
 *   updater asks it of every candidate that an index finds (activities/updater.ts), every five seconds.
 *
 * test/races/ tries every order of these transactions with the doctor after each step, and lets each two of them
 * overlap.
 */
import { continueAsNew, defineSignal, setHandler, workflowInfo } from '@temporalio/workflow';
import type { InstanceUpdateInput } from '../model/workflow-inputs.ts';
import { updateInstance } from './steps.ts';

/** The instance's stored state may need an update. */
export const updateNeeded = defineSignal('updateNeeded');

export async function instanceUpdate(input: InstanceUpdateInput): Promise<{ rounds: number; last: string }> {
  let needed = true;
  setHandler(updateNeeded, () => {
    needed = true;
  });
  let rounds = 0;
  let last = 'nothing to do';
  while (needed) {
    needed = false;
    rounds += 1;
    const result = await updateInstance(input);
    if (result !== null) last = result;
    if (needed && workflowInfo().continueAsNewSuggested) return continueAsNew<typeof instanceUpdate>(input);
  }
  return { rounds, last };
}
