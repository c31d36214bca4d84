/** The commands that start, stop and move an instance. */
import type { Command } from 'commander';
import type { OperationStarted } from '../../client/mooring-client.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { type ApiOptions, type CommandContext, contextOf, findSled, subcommandsOf } from '../context.ts';
import { followOperation, StillRunning } from '../follow.ts';
import { StatusLine } from '../output.ts';
import { printInstance } from './instance-table.ts';

/** How often an instance is read while a command waits for its state, in milliseconds. */
const WAIT_EVERY_MS = 250;

/** Adds `mooring instance start`, `stop`, `force-stop`, `reboot` and `migrate`. */
export function addInstanceOperationCommands(instance: Command): void {
  const sub = subcommandsOf(instance);

  sub('start <instance>', 'start an instance; returns when its sled has accepted to run it')
    .option('--wait', 'wait until it runs')
    .option('--no-follow', 'return at once, with the operation to follow')
    .option('--timeout <seconds>', 'how long to wait', Number)
    .action(async (name: string, options: ApiOptions & FollowFlags) => {
      const context = contextOf(options);
      const { project } = context;
      const started = await context.client.startInstance(name, { project, waitSeconds: 0 });
      await followAndPrint(context, started, `start ${name}`, options, (now) => now.run_state === 'running');
    });
  sub('stop <instance>', 'stop an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    printInstance(context, await context.client.stopInstance(name, { project: context.project }));
  });
  sub('force-stop <instance>', 'stop an instance whose sled does not answer, because it is powered off or expunged')
    .option(
      '--sled-powered-off',
      'your word that the silent sled is powered off: if it is not, the guest may run twice',
    )
    .action(async (name: string, options: ApiOptions & { sledPoweredOff?: boolean }) => {
      const context = contextOf(options);
      const statement = { sled_powered_off: options.sledPoweredOff ?? false };
      printInstance(context, await context.client.forceStopInstance(name, statement, { project: context.project }));
    });
  sub('reboot <instance>', 'reboot an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    printInstance(context, await context.client.rebootInstance(name, { project: context.project }));
  });
  sub('migrate <instance>', 'live-migrate an instance to another sled')
    .requiredOption('--to <sled>', 'the destination sled, by name or id')
    .option('--wait', 'wait until it runs there, or its migration has failed')
    .option('--no-follow', 'return at once, with the operation to follow')
    .option('--timeout <seconds>', 'how long to wait', Number)
    .action(async (name: string, options: ApiOptions & FollowFlags & { to: string }) => {
      const context = contextOf(options);
      const { project } = context;
      const destination = await findSled(context.client, options.to);
      const migrating = await context.client.migrateInstance(name, destination.id, { project, waitSeconds: 0 });
      const what = `migrate ${name} to ${destination.name}`;
      const settled = await followAndPrint(context, migrating, what, options, (now) => now.run_state !== 'migrating');
      if (options.wait && settled.sled_id !== destination.id) {
        throw new Error(`${name} did not move to ${destination.name}: it is ${settled.run_state} where it was`);
      }
    });
}

/** How far a command follows what it has begun. */
export interface FollowFlags {
  readonly wait?: boolean;
  readonly follow: boolean;
  readonly timeout?: number;
}

/**
 * Follows the operation that a call began, as far as its flags ask, and prints the instance. Throws
 * what {@link followOperation} throws; then nothing is printed.
 */
export async function followAndPrint(
  context: CommandContext,
  { instance, operationId }: OperationStarted,
  what: string,
  { wait, follow, timeout }: FollowFlags,
  settled: (instance: InstanceView) => boolean,
): Promise<InstanceView> {
  const end = timeout === undefined ? Number.POSITIVE_INFINITY : performance.now() + timeout * 1000;
  if (operationId !== null && follow) await followOperation(context, operationId, { what, timeoutSeconds: timeout });
  let now = await context.client.getInstance(instance.id);
  const line = new StatusLine(!context.json);
  while (wait && follow && !settled(now)) {
    if (performance.now() > end) throw new StillRunning(`${what}: it is still ${now.run_state} after ${timeout} s`, 75);
    if (['stopped', 'failed'].includes(now.run_state)) throw new Error(`${what}: it is ${now.run_state} now`);
    line.show(`${what}: ${now.run_state === 'migrating' ? await describeMigration(context, now.id) : now.run_state}`);
    await new Promise((resolve) => setTimeout(resolve, WAIT_EVERY_MS));
    now = await context.client.getInstance(instance.id);
  }
  line.clear();
  printInstance(context, now);
  if (!follow && operationId !== null && !context.json) {
    console.log(`follow it with: mooring operation show ${operationId} --wait`);
  }
  return now;
}

/** How far a migration is, in one line. A read that fails is not reported: the wait for the migration goes on. */
async function describeMigration({ client }: CommandContext, instanceId: string): Promise<string> {
  return client.getMigration(instanceId).then(
    ({ summary }) => `migration ${summary}`,
    () => 'migrating',
  );
}
