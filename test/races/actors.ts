/**
 * Who races: each actor is a small script of transactions, in the order in which the sagas, the reconcilers, the API and
 * the sled agents run them, decisions between them included. A step returns the name of the next one, `null` at the end,
 * or `WAIT` when it can't happen yet.
 */
import type { Database } from '../../db/connect.ts';
import { readInstance } from '../../db/queries/read-instance.ts';
import { readLinkedVmms, readVmmPlace } from '../../db/queries/read-vmm-place.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { claimMigration } from '../../db/transactions/claim-migration.ts';
import { claimStart } from '../../db/transactions/claim-start.ts';
import { commitUpdate } from '../../db/transactions/commit-update.ts';
import { deleteInstance } from '../../db/transactions/delete-instance.ts';
import { expungeSled } from '../../db/transactions/expunge-sled.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { recordSucceededOperation } from '../../db/transactions/succeed-operation.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
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
 * if it is still wanted), `told refused` is the sled's final no.
 */
export type SagaFault =
  | 'none'
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

/** Runs what may be refused: a refusal ends the script. */
async function unlessRefused<T>(run: () => Promise<T>): Promise<T | Refusal> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
}

/** The steps that undo an attempt: those of `workflows/unwind.ts`. */
function unwindSteps(name: string, fault: SagaFault): Record<string, Step> {
  return {
    async begin(db, world) {
      const attempt = attemptOf(world, name);
      const begun = await beginUnwind(db, { ...attempt, spareRunning: world.notes[`${name} gone`] === undefined });
      if (begun.spared) return 'succeed';
      world.notes[`${name} commanded`] = String(begun.commanded);
      world.notes[`${name} placed`] = String(begun.sled !== null);
      return 'finish';
    },
    async finish(db, world) {
      const attempt = attemptOf(world, name);
      const commanded = world.notes[`${name} commanded`] === 'true';
      const placed = world.notes[`${name} placed`] === 'true';
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
      return null;
    },
    async succeed(db, world) {
      await recordSucceededOperation(db, attemptOf(world, name));
      return null;
    },
  };
}

/** `checkStillWanted` of the activities: whether a VMM is to be commanded once more. */
async function stillWanted(db: Database, vmmId: string): Promise<boolean> {
  const place = await readVmmPlace(db, vmmId);
  if (place === null) return true;
  return place.sledPolicy !== 'expunged' && !isGoneVmmState(place.state) && place.intendedState === 'running';
}

/** A start, by the attempt of that name. */
export function start(name: string, fault: SagaFault = 'none'): Actor {
  const reached = (world: World, step: string) => {
    world.notes[`${name} reached`] = `${world.notes[`${name} reached`] ?? ''} ${step}`;
  };
  return {
    name: fault === 'none' ? name : `${name} (${fault})`,
    first: 'claim',
    steps: {
      async claim(db, world) {
        reached(world, 'claim');
        if (fault === 'cancelled before its claim') return 'begin';
        const claim = await unlessRefused(() => claimStart(db, { ...attemptOf(world, name), reason: 'user' }));
        if (claim === null || claim instanceof Refusal) return null;
        world.notes[`${name} sled`] = claim.sledId;
        return 'register';
      },
      async register(db, world) {
        reached(world, 'register');
        const { vmmId } = attemptOf(world, name);
        const reply = sleds.register(world, vmmId, world.notes[`${name} sled`] ?? '');
        if (typeof reply === 'string' || fault.startsWith('register lost')) return 'begin';
        const applied = await sleds.applyAnswer(db, vmmId, reply, { markCommanded: true });
        return applied !== null && applied.intendedState !== 'running' ? 'begin' : 'run';
      },
      async run(db, world) {
        reached(world, 'run');
        const attempt = attemptOf(world, name);
        if (fault === 'told refused') return 'begin';
        const sledId = world.notes[`${name} sled`] ?? '';
        if (fault === 'told, no answer') {
          if (world.notes[`${name} commanded once`] !== undefined && !(await stillWanted(db, attempt.vmmId)))
            return 'begin';
          if (world.notes[`${name} commanded once`] === undefined) {
            world.notes[`${name} commanded once`] = 'yes';
            sleds.command(world, attempt.vmmId, sledId);
            return 'run';
          }
        }
        const reply = sleds.command(world, attempt.vmmId, sledId);
        if (typeof reply === 'string') {
          if (reply === 'gone') world.notes[`${name} gone`] = 'yes';
          return 'begin';
        }
        if ((await sleds.applyAnswer(db, attempt.vmmId, reply, { succeed: attempt })) === null)
          await recordSucceededOperation(db, attempt);
        return 'boot';
      },
      async boot(db, world) {
        const { vmmId } = attemptOf(world, name);
        sleds.boot(world, vmmId);
        await sleds.deliver(db, world, vmmId);
        return null;
      },
      ...unwindSteps(name, fault),
    },
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
        if (claim !== null && !(claim instanceof Refusal)) world.notes[`${name} sled`] ??= claim.sledId;
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
export function migrate(name: string, fault: SagaFault = 'none'): Actor {
  return {
    name: fault === 'none' ? name : `${name} (${fault})`,
    first: 'claim',
    steps: {
      async claim(db, world) {
        if (fault === 'cancelled before its claim') return 'begin';
        const claimed = await unlessRefused(() =>
          claimMigration(db, { ...attemptOf(world, name), destinationSledId: world.there }),
        );
        if (claimed instanceof Refusal || claimed.outcome !== 'claimed') return null;
        world.notes[`${name} sled`] = world.there;
        return 'register';
      },
      async register(db, world) {
        const { vmmId, migrationId } = attemptOf(world, name);
        const record = await readInstance(db, world.instanceId);
        const reply = sleds.register(world, vmmId, world.there, {
          id: migrationId,
          sourceVmmId: record?.migration?.sourceVmmId ?? '',
        });
        if (typeof reply === 'string' || fault.startsWith('register lost')) return 'begin';
        const applied = await sleds.applyAnswer(db, vmmId, reply, { markCommanded: true });
        return applied !== null && applied.intendedState !== 'running' ? 'begin' : 'migrate in';
      },
      async 'migrate in'(db, world) {
        const attempt = attemptOf(world, name);
        if (fault === 'told refused') return 'begin';
        if (fault === 'told, no answer') {
          if (world.notes[`${name} commanded once`] !== undefined && !(await stillWanted(db, attempt.vmmId)))
            return 'begin';
          if (world.notes[`${name} commanded once`] === undefined) {
            world.notes[`${name} commanded once`] = 'yes';
            sleds.command(world, attempt.vmmId, world.there);
            return 'migrate in';
          }
        }
        const reply = sleds.command(world, attempt.vmmId, world.there);
        if (typeof reply === 'string') return 'begin';
        if ((await sleds.applyAnswer(db, attempt.vmmId, reply, { succeed: attempt })) === null)
          await recordSucceededOperation(db, attempt);
        return null;
      },
      ...unwindSteps(name, fault),
    },
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
      return recorded instanceof Refusal || !recorded.carry ? null : 'deliver';
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
        await expungeSled(db, world[which]);
        return null;
      },
    },
  };
}
