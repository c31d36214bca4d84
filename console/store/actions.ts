/**
 * What one may have done to an instance: each with its words, when it is legal (by the table of the model) and who may (by the
 * permissions of the model), so that nothing is offered that would be refused.
 */
import { type Operation as LegalOperation, migrateVerdict, refusalMessage, verdict } from '../../model/legality.ts';
import { api, done, messageOf, newKey } from '../api/client.ts';
import type { OperationName } from '../api/permitted.ts';
import { may } from '../api/session.ts';
import type { Instance, Sled } from '../api/types.ts';
import { learnInstance, sledOf } from './fleet.ts';
import { dismiss, say, whileAsked } from './notes.ts';

export type ActionName = Exclude<LegalOperation, 'migrate'> | 'force-stop';

export interface Action {
  readonly name: ActionName;
  readonly label: string;
  /** What is asked before it is done; `null`: nothing. */
  readonly asks: string | null;
  /** What one vouches for by it; `null`: nothing. */
  readonly vouches: string | null;
  /** Why it can't be done now; `null`: it can. */
  readonly refusal: string | null;
}

const PERMISSION: Readonly<Record<ActionName | 'migrate', OperationName>> = {
  start: 'instance_start',
  stop: 'instance_stop',
  reboot: 'instance_reboot',
  delete: 'instance_delete',
  'force-stop': 'instance_force_stop',
  migrate: 'instance_migrate',
};

function refusalOf(operation: LegalOperation, { name, run_state }: Instance): string | null {
  return verdict(run_state, operation) === 'act' ? null : refusalMessage(operation, name, run_state);
}

/** The actions that one may ask for, by one's role, at an instance. */
export function actionsOf(instance: Instance): Action[] {
  const simple = (name: Exclude<ActionName, 'force-stop'>, label: string, asks: string | null = null): Action => ({
    name,
    label,
    asks,
    vouches: null,
    refusal: refusalOf(name, instance),
  });
  const actions = [
    simple('start', 'Start'),
    simple('stop', 'Stop'),
    simple('reboot', 'Reboot'),
    simple(
      'delete',
      'Delete',
      `Delete "${instance.name}" for good? Its record goes; its history can still be read by its id.`,
    ),
  ];
  const silent = silentSled(instance);
  if (silent !== undefined)
    actions.push({
      name: 'force-stop',
      label: 'Force stop',
      asks: `"${instance.name}" is on sled "${silent.name}", which does not answer. Its guest may still run there. A forced stop gives it up, so that it can be started elsewhere: were the sled still on, two guests would write to the same disks.`,
      vouches: `I have made sure that sled "${silent.name}" is powered off and runs nothing any more.`,
      refusal: null,
    });
  return actions.filter(({ name }) => may(PERMISSION[name], instance.project_id));
}

function silentSled(instance: Instance): Sled | undefined {
  return [instance.sled_id, instance.migration_target_sled_id]
    .map((id) => sledOf(id))
    .find((sled) => sled !== undefined && sled.silent_since != null);
}

/** Does what an action says; what comes of it is said at the instance. `vouched`: one has given one's word. Never throws. */
export async function act(instance: Instance, name: ActionName, vouched = false): Promise<boolean> {
  try {
    await whileAsked(instance.id, `${name} is asked for`, () => call(instance.id, name, vouched));
    return true;
  } catch (error) {
    say([instance.id], { tone: 'bad', text: messageOf(error) });
    return false;
  }
}

async function call(instance: string, name: ActionName, vouched: boolean): Promise<void> {
  const params = { path: { instance } };
  const headers = newKey();
  switch (name) {
    case 'delete':
      await done(api.DELETE('/v1/instances/{instance}', { params }));
      return;
    case 'start':
      return learnInstance(await done(api.POST('/v1/instances/{instance}/start', { params, headers })));
    case 'stop':
      return learnInstance(await done(api.POST('/v1/instances/{instance}/stop', { params })));
    case 'reboot':
      return learnInstance(await done(api.POST('/v1/instances/{instance}/reboot', { params })));
    case 'force-stop': {
      const body = { sled_powered_off: vouched };
      return learnInstance(await done(api.POST('/v1/instances/{instance}/force-stop', { params, body })));
    }
  }
}

/** Whether one may migrate at all. */
export function mayMigrate(instance: Instance): boolean {
  return may(PERMISSION.migrate, instance.project_id);
}

/** Why an instance can't be moved now; `null`: it can. */
export function migrateRefusal(instance: Instance): string | null {
  return refusalOf('migrate', instance);
}

/** Why an instance would not fit a sled, as far as one can see from here; `null`: nothing speaks against it. */
export function destinationDoubt(instance: Instance, sled: Sled): string | null {
  if (sled.id === instance.sled_id) return 'it is there';
  if (sled.policy.kind === 'expunged') return 'expunged';
  if (sled.policy.provision_policy !== 'provisionable') return 'takes no new instances';
  if (sled.silent_since != null || sled.declared_dead !== null) return 'does not answer';
  if (sled.threads - sled.threads_reserved < instance.ncpus) return 'too few threads are free';
  if (sled.memory - sled.memory_reserved < instance.memory) return 'too little memory is free';
  return null;
}

/**
 * Migrates an instance to a sled. Where it is refused, the reason is said at the sled and at the instance: where one looks. Never
 * throws.
 */
export async function migrate(instance: Instance, sledId: string): Promise<boolean> {
  try {
    if (migrateVerdict(instance.run_state, sledId, instance.migration_target_sled_id) === 'no-op') return true;
    const params = { path: { instance: instance.id } };
    const body = { dst_sled_id: sledId };
    // What was said of an earlier attempt is over.
    for (const subject of [instance.id, sledId]) dismiss(subject);
    const words = `migration to ${sledOf(sledId)?.name ?? 'another sled'} is asked for`;
    await whileAsked(instance.id, words, async () =>
      learnInstance(await done(api.POST('/v1/instances/{instance}/migrate', { params, headers: newKey(), body }))),
    );
    return true;
  } catch (error) {
    say([instance.id, sledId], { tone: 'bad', text: messageOf(error) });
    return false;
  }
}
