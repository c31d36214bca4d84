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
      if (!options.yes) await confirmDeclareDead(found);
      const dead = await context.client.declareSledDead(found.id, { sled_powered_off: true });
      context.print(dead, () => `${sledTable([dead])}\n\n${describeFencing(dead)}`);
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
  sub('expunge <sled>', 'state that a sled is gone for good: what ran there becomes Failed').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const gone = await context.client.expungeSled((await findSled(context.client, name)).id);
      context.print(gone, () => sledTable([gone]));
    },
  );
  addDrainCommands(sled);
  addSledIdentityCommands(sled);
}

function sledTable(sleds: SledView[]): string {
  return table(
    ['NAME', 'POLICY', 'LEASE', 'THREADS', 'MEMORY', 'VMMS', 'ADDRESS', 'ID'],
    sleds.map((one) => [
      one.name,
      one.provision_state,
      one.declared_dead !== null ? colours.red('dead') : (one.lease?.standing ?? '-'),
      `${one.threads_reserved}/${one.threads}`,
      `${formatSize(one.memory_reserved)}/${formatSize(one.memory)}`,
      String(one.vmm_count),
      one.address,
      one.id,
    ]),
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

/** Asks the operator to confirm. Throws when that is refused, or standard input is no terminal. */
async function confirmDeclareDead({ name, vmm_count, lease }: SledView): Promise<void> {
  const warning = [
    `You vouch that sled "${name}" is powered off, or that nothing runs on it any more.`,
    `Its ${vmm_count} VMM${vmm_count === 1 ? '' : 's'} become Failed, and their instances may be started on other sleds.`,
    'If a guest still runs there, it runs twice from then on, and both write to what they share.',
    ...(lease === null
      ? []
      : ['This sled has fencing: it is declared dead by itself when its lease has lapsed. Waiting is safer.']),
  ];
  if (!process.stdin.isTTY) throw new Error(`${warning.join(' ')} Say so with --yes.`);
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`${warning.join('\n')}\nType the name of the sled to give your word: `);
    if (answer.trim() !== name) throw new Error('nothing was declared: that is not the name of the sled');
  } finally {
    terminal.close();
  }
}
