import { createInterface } from 'node:readline/promises';
import type { Command } from 'commander';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { type ApiOptions, collect, contextOf, findSled, subcommandsOf } from '../context.ts';
import { colours, formatSize, parseSize } from '../format.ts';
import { table } from '../output.ts';
import { addDrainCommands } from './drain.ts';
import { addSledIdentityCommands } from './sled-identity.ts';

/** Adds `mooring sled …`. */
export function addSledCommands(program: Command): void {
  const sled = program.command('sled').description('add and look at sleds');
  const sub = subcommandsOf(sled);

  sub('add <name>', 'add a sled without an identity, whose agent is running; "invite" is for all others')
    .requiredOption('--address <ip:port>', 'where its agent listens')
    .requiredOption('--threads <n>', 'hardware threads for VMs', Number)
    .requiredOption('--memory <size>', 'memory for VMs, for example 64GiB', parseSize)
    .action(async (name: string, options: ApiOptions & { address: string; threads: number; memory: number }) => {
      const context = contextOf(options);
      const { address, threads, memory } = options;
      const added = await context.client.addSled({ name, address, threads, memory });
      context.print(added, () => sledTable([added]));
    });
  sub('list', 'list the sleds').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found = await collect(context.client.listSleds());
    context.print(found, () => sledTable(found));
  });
  sub('show <sled>', 'show a sled, with its lease').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    const found = await findSled(context.client, name);
    context.print(found, () => `${sledTable([found])}\n\n${describeFencing(found)}`);
  });
  sub('declare-dead <sled>', 'state that nothing runs on a silent sled: what ran there is started elsewhere')
    .option('--yes', 'give your word without being asked')
    .action(async (name: string, options: ApiOptions & { yes?: boolean }) => {
      const context = contextOf(options);
      const found = await findSled(context.client, name);
      if (!options.yes) await confirmPoweredOff(found, 'declared', DECLARE_DEAD);
      const dead = await context.client.declareSledDead(found.id, { sled_powered_off: true });
      context.print(
        dead,
        () =>
          `${sledTable([dead])}\n\n${describeFencing(dead)}${dead.declared_dead === null ? `\n${dead.name}: it may hold its lease: it is declared dead when that has lapsed` : ''}`,
      );
    });
  sub('set-policy <sled> <policy>', 'provisionable or non_provisionable').action(
    async (name: string, policy: 'provisionable' | 'non_provisionable', options: ApiOptions) => {
      const context = contextOf(options);
      const { id } = await findSled(context.client, name);
      await context.client.setSledPolicy(id, policy);
      const now = await context.client.getSled(id);
      context.print(now, () => sledTable([now]));
    },
  );
  sub('expunge <sled>', 'state that a sled is powered off or removed, for good: what ran there becomes Failed')
    .option('--yes', 'give your word without being asked')
    .action(async (name: string, options: ApiOptions & { yes?: boolean }) => {
      const context = contextOf(options);
      const found = await findSled(context.client, name);
      if (!options.yes) await confirmPoweredOff(found, 'expunged', EXPUNGE);
      const gone = await context.client.expungeSled(found.id, { sled_powered_off: true });
      context.print(gone, () => `${sledTable([gone])}\n\n${describeExpunge(gone)}`);
    });
  addDrainCommands(sled);
  addSledIdentityCommands(sled);
}

function sledTable(sleds: SledView[]): string {
  return table(
    ['NAME', 'POLICY', 'LEASE', 'THREADS', 'MEMORY', 'VMMS', 'ADDRESS', 'ID'],
    sleds.map((one) => [
      one.name,
      isLeaving(one) ? colours.red('expunging') : one.provision_state,
      one.declared_dead !== null ? colours.red('dead') : (one.lease?.standing ?? '-'),
      `${one.threads_reserved}/${one.threads}`,
      `${formatSize(one.memory_reserved)}/${formatSize(one.memory)}`,
      String(one.vmm_count),
      one.address,
      one.id,
    ]),
  );
}

/** It was expunged, and guests of it may run still. */
function isLeaving({ policy, state }: SledView): boolean {
  return policy.kind === 'expunged' && state === 'active';
}

/** Describes what came of an expunge. */
function describeExpunge(gone: SledView): string {
  const { name, vmm_count, lease } = gone;
  if (!isLeaving(gone)) return `${name}: expunged; what ran there is Failed`;
  const vmms = `its ${vmm_count} VMM${vmm_count === 1 ? '' : 's'}`;
  return colours.red(
    lease === null
      ? `${name}: it answers, so it is powered on: ${vmms} become Failed when it has ended them. If it does not, power it off and expunge it again`
      : `${name}: it may hold its lease: ${vmms} become Failed when that has lapsed`,
  );
}

/** Describes a sled's fencing and its lease. */
function describeFencing({ name, lease, declared_dead: dead }: SledView): string {
  const lines =
    lease === null
      ? [
          'without fencing: while it is silent, only "mooring sled declare-dead" or "mooring sled expunge" lets its guests start elsewhere',
        ]
      : [
          `fencing since ${lease.fencing_since}: it powers its guests off when it could not renew its lease of ${lease.seconds} s`,
          `lease ${lease.standing}: renewed ${lease.time_renewed}, ${lease.standing === 'lapsed' ? 'over since' : 'until'} ${lease.time_expires}`,
        ];
  if (dead !== null) {
    const why = dead.by === 'lease' ? 'its lease lapsed' : 'an operator vouched for it';
    lines.push(
      colours.red(`declared dead ${dead.time}: ${why}; in service again once it proves that nothing of it still runs`),
    );
  }
  return lines.map((line) => `${name}: ${line}`).join('\n');
}

const DECLARE_DEAD = {
  vouch: (name: string) => `You vouch that sled "${name}" is powered off, or that nothing runs on it any more.`,
  leased: 'This sled has fencing: it is declared dead by itself when its lease has lapsed, and no sooner.',
};
const EXPUNGE = {
  vouch: (name: string) =>
    `You vouch that sled "${name}" is powered off, or was removed. It never comes back: its server can only be added as a new sled.`,
  leased: 'This sled has fencing: its VMMs become Failed when its lease has lapsed, and no sooner.',
};

/** Asks the operator to confirm. Throws when that is refused, or standard input is no terminal. */
async function confirmPoweredOff(
  { name, vmm_count, lease }: SledView,
  done: string,
  { vouch, leased }: { vouch: (name: string) => string; leased: string },
): Promise<void> {
  const warning = [
    vouch(name),
    `Its ${vmm_count} VMM${vmm_count === 1 ? '' : 's'} become Failed, and their instances may be started on other sleds.`,
    'If a guest still runs there, it runs twice from then on, and both write to what they share.',
    ...(lease === null ? [] : [leased]),
  ];
  if (!process.stdin.isTTY) throw new Error(`${warning.join(' ')} Say so with --yes.`);
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`${warning.join('\n')}\nType the name of the sled to give your word: `);
    if (answer.trim() !== name) throw new Error(`nothing was ${done}: that is not the name of the sled`);
  } finally {
    terminal.close();
  }
}
