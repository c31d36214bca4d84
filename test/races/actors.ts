/**
 * Who races: each actor is a small script of transactions, in the order in which the sagas, the reconcilers, the API and
 * the sled agents run them, decisions between them included. A step returns the name of the next one, `null` at the end,
 * or `WAIT` when it can't happen yet.
 */
import { sql } from 'drizzle-orm';
import type { Database } from '../../db/connect.ts';
import { isSledExpunged } from '../../db/queries/is-sled-expunged.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readOperation } from '../../db/queries/read-operation.ts';
import { readSledFacts } from '../../db/queries/read-sled-facts.ts';
import { readLinkedVmms, readVmmPlace } from '../../db/queries/read-vmm-place.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimMigration } from '../../db/transactions/claim-migration.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { declareSledDead, judgeLease } from '../../db/transactions/declare-dead.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { expungeSled, settleExpunge } from '../../db/transactions/expunge-sled.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { recordForceStop } from '../../db/transactions/force-stop.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { AlreadyUnwound } from '../../db/transactions/refuse-operation.ts';
import { renewLease } from '../../db/transactions/renew-lease.ts';
import { recordSucceededOperation } from '../../db/transactions/succeed-operation.ts';
import { type ForceStopSide, judgeForceStop, standingOf } from '../../model/force-stop.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import type { SledVmmState } from '../../wire/sled-protocol.ts';
import { type SagaAttempt, unwindError } from '../support/saga-steps.ts';
import type { SledReply, World } from './world.ts';
import * as sleds from './world.ts';

export const WAIT = Symbol('this step cannot happen yet');
export type Step = (db: Database, world: World) => Promise<string | null | typeof WAIT>;

export interface Actor {
  readonly name: string;
  readonly first: string;
  readonly steps: Readonly<Record<string, Step>>;
}

/**
 * What goes wrong in a saga: `register lost` and `told, no answer` take effect without an answer (the latter is sent again,
 * if it is still wanted), `told refused` is the sled's final no. `lost after` a step: its workflow task is lost there, and
 * another run of the saga goes on with the same ids.
 */
export type SagaFault =
  | 'none'
  | 'lost after claim'
  | 'lost after register'
  | 'lost after begin'
  | 'cancelled before its claim'
  | 'register lost'
  | 'register lost, sled silent'
  | 'told, no answer'
  | 'told refused';

function attemptOf(world: World, name: string): SagaAttempt {
  const attempt = world.attempts[name];
  if (attempt === undefined) throw new Error(`there is no attempt ${name}`);
  return attempt;
}

const isReport = (reply: SledReply) => typeof reply !== 'string';

/** Runs what may be refused, or may find its attempt unwound: both end the script. */
async function unlessRefused<T>(run: () => Promise<T>): Promise<T | Refusal | AlreadyUnwound> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof Refusal || error instanceof AlreadyUnwound) return error;
    throw error;
  }
}

/** A run of a saga whose workflow task was lost in the middle of it: the same attempt once more, beside the first run. */
export interface Redone {
  readonly redone: true;
}

/** A run's own name: what it remembers is not what another run of the same attempt does. */
const runOf = (name: string, again: Redone | undefined) => (again === undefined ? name : `redone ${name}`);

/** The steps up to the one after which the run is lost. */
function until(fault: SagaFault, steps: Record<string, Step>): Record<string, Step> {
  const last = /^lost after (.*)/.exec(fault)?.[1];
  const step = last === undefined ? undefined : steps[last];
  if (last === undefined || step === undefined) return steps;
  const ending: Step = async (db, world) => ((await step(db, world)) === WAIT ? WAIT : null);
  return { ...steps, [last]: ending };
}

/** The steps that undo an attempt: those of `workflows/unwind.ts`. */
function unwindSteps(name: string, run: string, fault: SagaFault): Record<string, Step> {
  return {
    async begin(db, world) {
      const attempt = attemptOf(world, name);
      const begun = await beginUnwind(db, {
        ...attempt,
        spareRunning: world.notes[`${run} gone`] === undefined,
        refused: attempt.kind === 'start' || world.notes[`${run} told`] !== undefined,
      });
      if (begun.forward) return 'migrate in';
      if (begun.spared) return 'succeed';
      world.notes[`${run} commanded`] = String(begun.commanded);
      world.notes[`${run} placed`] = String(begun.sled !== null);
      return 'finish';
    },
    async finish(db, world) {
      const attempt = attemptOf(world, name);
      const commanded = world.notes[`${run} commanded`] === 'true';
      const placed = world.notes[`${run} placed`] === 'true';
      const sledId = world.notes[`${name} sled`] ?? '';
      // Where nothing was commanded, a silent sled is not waited for.
      const silent = fault === 'register lost, sled silent' && !commanded;
      if (placed && !silent) await sleds.unregister(db, world, attempt.vmmId, sledId);
      await finishUnwind(db, {
        ...attempt,
        confirmed: !(placed && silent),
        neverCommanded: !commanded,
        error: unwindError(),
      });
      const record = await readInstance(db, world.instanceId);
      if (
        attempt.kind === 'start' &&
        record?.instance.activeVmmId === attempt.vmmId &&
        record.externalState !== 'stopped'
      ) {
        world.wrongs.push(`the start failed, but the instance shows ${record.externalState}`);
      }
      await expectOutcome(db, world, name, false);
      return null;
    },
    async succeed(db, world) {
      const attempt = attemptOf(world, name);
      // What spared it has written that already.
      if ((await readOperation(db, attempt.operationId))?.succeeded !== true)
        world.wrongs.push(`${run}: its VMM was spared, but the operation has not succeeded`);
      return null;
    },
  };
}

/** Takes the answer to a command; returns whether the operation has succeeded: `commandVmm` of the activities. */
async function succeeds(db: Database, world: World, name: string, reply: SledVmmState): Promise<boolean> {
  const attempt = attemptOf(world, name);
  const applied = await sleds.applyAnswer(db, attempt.vmmId, reply, { succeed: attempt });
  const succeeded = applied === null ? await recordSucceededOperation(db, attempt) : applied.verdict === 'applied';
  if (succeeded) await expectOutcome(db, world, name, true);
  return succeeded;
}

/** `checkStillWanted` of the activities: whether a VMM is to be commanded once more. */
async function stillWanted(db: Database, vmmId: string): Promise<boolean> {
  const place = await readVmmPlace(db, vmmId);
  if (place === null) return true;
  return place.sledPolicy !== 'expunged' && !isGoneVmmState(place.state) && place.intendedState === 'running';
}

/** What a run that was told that its operation succeeded, or failed, has to find on record. */
async function expectOutcome(db: Database, world: World, name: string, succeeded: boolean): Promise<void> {
  const found = await readOperation(db, attemptOf(world, name).operationId);
  if (found?.succeeded !== succeeded)
    world.wrongs.push(
      `${name}: a run of it ${succeeded ? 'succeeded' : 'failed'}, but on record is ${found?.succeeded}`,
    );
}

/** A start, by the attempt of that name. */
export function start(name: string, fault: SagaFault = 'none', again?: Redone): Actor {
  const run = runOf(name, again);
  const reached = (world: World, step: string) => {
    world.notes[`${name} reached`] = `${world.notes[`${name} reached`] ?? ''} ${step}`;
  };
  return {
    name: fault === 'none' ? run : `${run} (${fault})`,
    first: 'claim',
    steps: until(fault, {
      async claim(db, world) {
        reached(world, 'claim');
        if (fault === 'cancelled before its claim') return 'begin';
        const claim = await unlessRefused(() => claimStart(db, { ...attemptOf(world, name), reason: 'user' }));
        if (claim instanceof AlreadyUnwound) {
          await expectOutcome(db, world, name, false);
          return null;
        }
        if (claim === null || claim instanceof Refusal) {
          await expectOutcome(db, world, name, claim === null);
          return null;
        }
        world.notes[`${name} sled`] = claim.sledId;
        return 'register';
      },
      async register(db, world) {
        reached(world, 'register');
        const { vmmId } = attemptOf(world, name);
        const reply = sleds.register(world, vmmId, world.notes[`${name} sled`] ?? '');
        if (typeof reply === 'string' || fault.startsWith('register lost')) return 'begin';
        const applied = await sleds.applyAnswer(db, vmmId, reply, { markCommanded: true });
        return applied?.intendedState === 'running' && applied.commanded ? 'run' : 'begin';
      },
      async run(db, world) {
        reached(world, 'run');
        const attempt = attemptOf(world, name);
        if (fault === 'told refused' || fault === 'lost after begin') return 'begin';
        const sledId = world.notes[`${name} sled`] ?? '';
        if (fault === 'told, no answer') {
          if (world.notes[`${run} commanded once`] !== undefined && !(await stillWanted(db, attempt.vmmId)))
            return 'begin';
          if (world.notes[`${run} commanded once`] === undefined) {
            world.notes[`${run} commanded once`] = 'yes';
            sleds.command(world, attempt.vmmId, sledId);
            return 'run';
          }
        }
        const reply = sleds.command(world, attempt.vmmId, sledId);
        if (typeof reply === 'string') {
          if (reply === 'gone') world.notes[`${run} gone`] = 'yes';
          return 'begin';
        }
        return (await succeeds(db, world, name, reply)) ? 'boot' : 'begin';
      },
      async boot(db, world) {
        const { vmmId } = attemptOf(world, name);
        sleds.boot(world, vmmId);
        await sleds.deliver(db, world, vmmId);
        return null;
      },
      ...unwindSteps(name, run, fault),
    }),
  };
}

/** Earlier attempts of the steps of a start that take effect late: nobody listens to what comes of them. */
export function lateAttemptsOf(name: string): Actor {
  const hasReached = (world: World, step: string) => (world.notes[`${name} reached`] ?? '').split(' ').includes(step);
  return {
    name: `late attempts of ${name}`,
    first: 'claim',
    steps: {
      async claim(db, world) {
        if (!hasReached(world, 'claim')) return WAIT;
        const claim = await unlessRefused(() => claimStart(db, { ...attemptOf(world, name), reason: 'user' }));
        if (claim !== null && !(claim instanceof Error)) world.notes[`${name} sled`] ??= claim.sledId;
        return 'register';
      },
      async register(db, world) {
        if (!hasReached(world, 'register')) return WAIT;
        const { vmmId } = attemptOf(world, name);
        const reply = sleds.register(world, vmmId, world.notes[`${name} sled`] ?? '');
        if (typeof reply !== 'string') await sleds.applyAnswer(db, vmmId, reply, { markCommanded: true });
        return 'run';
      },
      async run(db, world) {
        if (!hasReached(world, 'run')) return WAIT;
        const attempt = attemptOf(world, name);
        const reply = sleds.command(world, attempt.vmmId, world.notes[`${name} sled`] ?? '');
        if (typeof reply !== 'string') await sleds.applyAnswer(db, attempt.vmmId, reply, { succeed: attempt });
        return null;
      },
    },
  };
}

/** A migration to `there`, by the attempt of that name. */
export function migrate(name: string, fault: SagaFault = 'none', again?: Redone): Actor {
  const run = runOf(name, again);
  return {
    name: fault === 'none' ? run : `${run} (${fault})`,
    first: 'claim',
    steps: until(fault, {
      async claim(db, world) {
        if (fault === 'cancelled before its claim') return 'begin';
        const claimed = await unlessRefused(() =>
          claimMigration(db, { ...attemptOf(world, name), destinationSledId: world.there }),
        );
        if (claimed instanceof AlreadyUnwound) {
          await expectOutcome(db, world, name, false);
          return null;
        }
        if (claimed instanceof Refusal || claimed.outcome !== 'claimed') {
          if (claimed instanceof Refusal) await expectOutcome(db, world, name, false);
          else if (claimed.outcome === 'already') await expectOutcome(db, world, name, true);
          return null;
        }
        world.notes[`${name} sled`] = world.there;
        const record = await readInstance(db, world.instanceId);
        world.notes[`${name} source`] ??= record?.migration?.sourceVmmId ?? '';
        return 'register';
      },
      async register(db, world) {
        const { vmmId, migrationId } = attemptOf(world, name);
        const reply = sleds.register(world, vmmId, world.there, {
          id: migrationId,
          sourceVmmId: world.notes[`${name} source`] ?? '',
        });
        if (typeof reply === 'string' || fault.startsWith('register lost')) return 'begin';
        const applied = await sleds.applyAnswer(db, vmmId, reply, { markCommanded: true });
        return applied?.intendedState === 'running' && applied.commanded ? 'migrate in' : 'begin';
      },
      async 'migrate in'(db, world) {
        const attempt = attemptOf(world, name);
        world.notes[`${run} told`] = 'yes';
        if (fault === 'told refused' || fault === 'lost after begin') return 'begin';
        if (fault === 'told, no answer') {
          if (world.notes[`${run} commanded once`] !== undefined && !(await stillWanted(db, attempt.vmmId)))
            return 'begin';
          if (world.notes[`${run} commanded once`] === undefined) {
            world.notes[`${run} commanded once`] = 'yes';
            sleds.command(world, attempt.vmmId, world.there);
            return 'migrate in';
          }
        }
        const reply = sleds.command(world, attempt.vmmId, world.there);
        if (typeof reply === 'string') return 'begin';
        return (await succeeds(db, world, name, reply)) ? null : 'begin';
      },
      ...unwindSteps(name, run, fault),
    }),
  };
}

/** The two sleds hand the guest over and report it. */
export function handOver(outcome: 'completes' | 'fails'): Actor {
  const deliverFrom =
    (side: 'source' | 'target', next: string | null): Step =>
    async (db, world) => {
      const vmmId = world.notes[`hand-over ${side}`];
      if (vmmId !== undefined) await sleds.deliver(db, world, vmmId);
      return next;
    };
  return {
    name: outcome === 'completes' ? 'hand-over' : 'hand-over that fails',
    first: 'begin',
    steps: {
      async begin(db, world) {
        const found = sleds.handOverOf(world);
        if (found === null) return WAIT;
        world.notes['hand-over target'] = found.target.id;
        world.notes['hand-over source'] = found.target.incoming?.sourceVmmId ?? '';
        sleds.beginHandOver(found);
        await sleds.deliver(db, world, found.target.id);
        return 'source begins';
      },
      'source begins': deliverFrom('source', 'end'),
      async end(db, world) {
        const found = sleds.handOverOf(world);
        if (found !== null) {
          if (outcome === 'completes') sleds.completeHandOver(found);
          else sleds.failHandOver(world, found);
        }
        return deliverFrom('source', 'target reports')(db, world);
      },
      'target reports': deliverFrom('target', 'source ends'),
      async 'source ends'(db, world) {
        const source = world.vmms[world.notes['hand-over source'] ?? ''];
        if (source?.out?.state === 'completed') sleds.end(world, source, 'destroyed');
        return deliverFrom('source', null)(db, world);
      },
    },
  };
}

export const STOP: Actor = {
  name: 'stop',
  first: 'record',
  steps: {
    async record(db, world) {
      const recorded = await unlessRefused(() => recordStop(db, world.instanceId));
      return recorded instanceof Error || !recorded.carry ? null : 'deliver';
    },
    async deliver(db, world) {
      await deliverStop(db, world);
      return null;
    },
  },
};

/** Tells every VMM that has, or may get, the guest to stop: `deliverStop` of the activities, once. */
export async function deliverStop(db: Database, world: World): Promise<void> {
  const linked = await readLinkedVmms(db, world.instanceId);
  if (linked[0]?.intendedState === 'running') return;
  for (const vmm of linked) {
    if (isGoneVmmState(vmm.state) || vmm.unwinding || ['creating', 'stopping', 'stopped'].includes(vmm.state)) continue;
    const sledId = world.vmms[vmm.vmmId]?.sledId ?? '';
    const reply = vmm.sledPolicy === 'expunged' ? 'silent' : sleds.stop(world, vmm.vmmId, sledId);
    if (reply === 'gone') await failVmm(db, vmm.vmmId, 'its sled does not know it');
    if (isReport(reply)) await sleds.deliver(db, world, vmm.vmmId);
  }
}

export const DELETE: Actor = {
  name: 'delete',
  first: 'delete',
  steps: {
    async delete(db, world) {
      await unlessRefused(() => deleteInstance(db, world.instanceId));
      return null;
    },
  },
};

export const UPDATE: Actor = {
  name: 'update',
  first: 'once',
  steps: {
    async once(db, world) {
      await commitUpdate(db, world.instanceId);
      return 'again';
    },
    async again(db, world) {
      await commitUpdate(db, world.instanceId);
      return null;
    },
  },
};

/** A VMM is lost by its sled; the watcher notices, and its verdict comes some time later. */
export function watcher(which: 'active' | 'target'): Actor {
  return {
    name: `watcher (${which})`,
    first: 'lose',
    steps: {
      async lose(db, world) {
        const record = await readInstance(db, world.instanceId);
        const vmm = which === 'active' ? record?.active : record?.target;
        // What its sled may not know yet is not asked for.
        if (vmm == null || isGoneVmmState(vmm.state) || vmm.state === 'creating' || vmm.unwindingSince !== null)
          return WAIT;
        sleds.lose(world, vmm.id);
        world.notes[`lost ${which}`] = vmm.id;
        return 'verdict';
      },
      async verdict(db, world) {
        await failVmm(db, world.notes[`lost ${which}`] ?? '', 'its sled does not know it any more');
        return null;
      },
    },
  };
}

/** The VM's process dies, or the guest powers itself off; its sled reports it. */
export function guestEnds(how: 'crashes' | 'halts'): Actor {
  return {
    name: `guest ${how}`,
    first: 'end',
    steps: {
      async end(_, world) {
        const [vmm] = sleds.guestsOf(world);
        if (vmm === undefined || (how === 'halts' && vmm.state !== 'running')) return WAIT;
        world.notes.ended = vmm.id;
        if (how === 'halts') sleds.stop(world, vmm.id, vmm.sledId);
        else sleds.end(world, vmm, 'failed');
        return 'report';
      },
      async report(db, world) {
        await sleds.deliver(db, world, world.notes.ended ?? '');
        return how === 'halts' ? 'destroyed' : null;
      },
      async destroyed(db, world) {
        const vmm = world.vmms[world.notes.ended ?? ''];
        if (vmm !== undefined) sleds.end(world, vmm, 'destroyed');
        await sleds.deliver(db, world, world.notes.ended ?? '');
        return null;
      },
    },
  };
}

export function expunge(which: 'here' | 'there'): Actor {
  return {
    name: `expunge ${which}`,
    first: 'expunge',
    steps: {
      async expunge(db, world) {
        sleds.loseSled(world, world[which]);
        await expungeSled(db, world[which], { answers: false, poweredOff: true });
        return null;
      },
    },
  };
}

/** An operator says of the sled `here` that it is off, whether or not it answers: the API asks it before it decides. */
export function word(about: 'expunge' | 'declare-dead' | 'force-stop'): Actor {
  return {
    name: `operator's word: ${about}`,
    first: 'probe',
    steps: {
      async probe(_, world) {
        world.notes[`${about}: answers`] = String(sleds.answers(world, world.here));
        return 'decide';
      },
      async decide(db, world) {
        const said = { answers: world.notes[`${about}: answers`] === 'true', poweredOff: true };
        await unlessRefused<unknown>(() => {
          if (about === 'expunge') return expungeSled(db, world.here, said);
          if (about === 'declare-dead') return declareSledDead(db, world.here, said);
          return forceStop(db, world, said.answers);
        });
        return null;
      },
    },
  };
}

/** The handler of a force-stop, in one go. `answers`: whether the sled `here` did, a moment ago. */
async function forceStop(db: Database, world: World, answers: boolean): Promise<void> {
  const living = (await readLinkedVmms(db, world.instanceId)).filter((vmm) => !isGoneVmmState(vmm.state));
  const sides = await Promise.all(
    living.map(async (vmm): Promise<ForceStopSide> => {
      const { vmmId, sledId, sledName } = vmm;
      const heard = sledId === world.here ? answers : sleds.answers(world, sledId ?? '');
      const standing = vmm.givenUp
        ? 'given-up'
        : standingOf({ answers: heard, ...(await readSledFacts(db, sledId ?? '')) });
      return { vmmId, sledName: sledName ?? '', standing };
    }),
  );
  const judged = judgeForceStop('vm', sides, true);
  if (judged.verdict === 'refuse') throw Refusal.conflict(judged.message);
  await recordForceStop(db, world.instanceId, {
    seen: living.map((vmm) => vmm.vmmId),
    vouched: judged.vouched,
  });
}

/** The agent of a sled that was expunged hears of it: it ends its guests, and reports that. */
export function sledHears(which: 'here' | 'there'): Actor {
  return {
    name: 'sled hears that it was expunged',
    first: 'hear',
    steps: {
      async hear(db, world) {
        if (!(await isSledExpunged(db, world[which]))) return WAIT;
        sleds.endAll(world, world[which]);
        return 'report';
      },
      async report(db, world) {
        for (const vmm of Object.values(world.vmms))
          if (vmm.sledId === world[which]) await sleds.deliver(db, world, vmm.id);
        return null;
      },
    },
  };
}

/** Time passes: a sled that is cut off powers its guests off, and then the control plane's margin is over too. */
export function leaseLapses(which: 'here' | 'there'): Actor {
  return {
    name: 'lease lapses',
    first: 'guests off',
    steps: {
      async 'guests off'(_, world) {
        if (!world.silentSleds.includes(world[which])) return WAIT;
        sleds.loseSled(world, world[which]);
        return 'margin over';
      },
      async 'margin over'(db, world) {
        await lapse(db, world[which]);
        return null;
      },
    },
  };
}

/** As if the last renewal of a sled's lease had come two leases ago. */
export async function lapse(db: Database, sledId: string): Promise<void> {
  await db.execute(sql`UPDATE sled SET lease_renewed_at = clock_timestamp() - 2 * lease_ms * interval '1 millisecond',
    lease_confirmed_at = clock_timestamp() - 2 * lease_ms * interval '1 millisecond' WHERE id = ${sledId}`);
}

/** What the fencing loop does about one sled. */
export function fencingPass(which: 'here' | 'there'): Actor {
  return {
    name: 'fencing',
    first: 'judge',
    steps: {
      async judge(db, world) {
        await judgeLease(db, world[which]);
        return 'settle';
      },
      async settle(db, world) {
        await settleExpunge(db, world[which]);
        return null;
      },
    },
  };
}

/** A sled that was cut off is heard again: it renews its lease, and does as it is answered. */
export function sledIsHeard(which: 'here' | 'there'): Actor {
  return {
    name: 'sled is heard again',
    first: 'renew',
    steps: {
      async renew(db, world) {
        const sledId = world[which];
        if (world.lostSleds.includes(sledId)) return WAIT;
        world.silentSleds = world.silentSleds.filter((silent) => silent !== sledId);
        const livingVmmIds = Object.values(world.vmms)
          .filter((vmm) => vmm.sledId === sledId && vmm.state !== 'failed' && vmm.state !== 'destroyed')
          .map((vmm) => vmm.id);
        const renewed = await renewLease(db, {
          ...{ sledId, leaseMs: sleds.LEASE_MS, held: true, livingVmmIds },
          epoch: world.notes.epoch === undefined ? null : Number(world.notes.epoch),
        });
        if (renewed.outcome === 'granted') return null;
        if (renewed.outcome === 'declared-dead') world.notes.epoch = String(renewed.epoch);
        sleds.endAll(world, sledId);
        for (const vmm of Object.values(world.vmms)) if (vmm.sledId === sledId) await sleds.deliver(db, world, vmm.id);
        return renewed.outcome === 'declared-dead' ? 'renew' : null;
      },
    },
  };
}
