import { createInterface } from 'node:readline/promises';
import type { Command } from 'commander';
import type { SledAdded, SledView } from '../../wire/operator-api/sleds.ts';
import { type ApiOptions, type CommandContext, collect, contextOf, findSled, subcommandsOf } from '../context.ts';
import { colours, formatSize, parseSize } from '../format.ts';
import { table } from '../output.ts';
import { sledStatus } from '../sled-status.ts';
import { SUMMARIES } from '../summaries.ts';
import { addDrainCommands } from './drain.ts';
import { addSledIdentityCommands } from './sled-identity.ts';

/** Adds `mooring sled …`. */
export function addSledCommands(program: Command): void {
  const sled = program.command('sled').description(SUMMARIES.sled);
  const sub = subcommandsOf(sled);

  sub('add <name>', 'add a sled without an identity, whose agent is running; "invite" is for all others')
    .requiredOption(
      '--address <host:port>',
      'where its agent listens: 10.0.0.7:8099, [2001:db8::7]:8099, sled-7.example:8099',
    )
    .requiredOption('--threads <n>', 'hardware threads for VMs', Number)
    .requiredOption('--memory <size>', 'memory for VMs, for example 64GiB', parseSize)
    .action(async (name: string, options: ApiOptions & { address: string; threads: number; memory: number }) => {
      const context = contextOf(options);
      const { address, threads, memory } = options;
      const added = await context.client.addSled({ name, address, threads, memory });
      printAdded(context, added);
    });
  sub(
    'set-address <sled> <address>',
    'say where the agent of a sled listens by now; refused while it answers where it was',
  )
    .addHelpText(
      'after',
      `
Its VMMs are found at the new address: end the agent, start it with the same --data and the new --address, then say so.
It is refused where an agent there doesn't have all of them: they would be called lost while they run.
One that has joined joins again instead, by a new invitation.

Examples:
  mooring sled set-address sled-7 10.0.0.17:8099`,
    )
    .option(
      '--sled-powered-off',
      'state that the machine at the former address is powered off or removed: VMMs that are not found at the new one are lost',
    )
    .action(async (name: string, address: string, options: ApiOptions & { sledPoweredOff?: boolean }) => {
      const context = contextOf(options);
      const { id } = await findSled(context.client, name);
      const word = options.sledPoweredOff ? { sled_powered_off: true } : {};
      printAdded(context, await context.client.setSledAddress(id, address, word));
    });
  sub('list', 'list the sleds').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found = await collect(context.client.listSleds());
    context.print(found, () => [sledTable(found), ...found.filter(isLeaving).map(describeExpunge)].join('\n\n'));
  });
  sub('show <sled>', 'show a sled, with its lease').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    const found = await findSled(context.client, name);
    context.print(found, () => `${sledTable([found])}\n\n${describeSled(found)}`);
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

/** Prints a sled that was added or moved, and on standard error what is not as it should be. */
function printAdded(context: CommandContext, sled: SledAdded): void {
  context.print(sled, () => sledTable([sled]));
  if (sled.warning != null && !context.json) console.error(colours.yellow(`warning: ${sled.warning}`));
}

function sledTable(sleds: SledView[]): string {
  return table(
    ['NAME', 'POLICY', 'STATUS', 'LEASE', 'THREADS', 'MEMORY', 'VMMS', 'AGENT', 'ADDRESS', 'ID'],
    sleds.map((one) => [
      one.name,
      isLeaving(one) ? colours.red('expunging') : one.provision_state,
      sledStatus(one),
      one.declared_dead !== null ? colours.red('dead') : (one.lease?.standing ?? '-'),
      `${one.threads_reserved}/${one.threads}`,
      `${formatSize(one.memory_reserved)}/${formatSize(one.memory)}`,
      String(one.vmm_count),
      one.agent?.version ?? '-',
      one.address,
      one.id,
    ]),
  );
}

/** Describes whether a sled answers, its fencing and its lease. */
function describeSled(sled: SledView): string {
  const { name, silent_since: since, last_answered: last, agent } = sled;
  const lines = [
    since == null
      ? null
      : colours.red(
          `gives no answer since ${since}${last == null ? ', and never gave one' : ''}; nothing is known of its guests`,
        ),
    since == null && last != null ? `answered last ${last}` : null,
    ...(agent?.trouble ?? []).map((trouble) => colours.yellow(`its agent is not well: ${trouble}`)),
  ].filter((line) => line !== null);
  const leaving = isLeaving(sled) ? [describeExpunge(sled)] : [];
  return [...lines.map((line) => `${name}: ${line}`), ...leaving, describeFencing(sled)].join('\n');
}

/** It was expunged, and guests of it may run still. */
function isLeaving({ policy, state }: SledView): boolean {
  return policy.kind === 'expunged' && state === 'active';
}

/** Describes what came of an expunge, and what it waits for. */
function describeExpunge(gone: SledView): string {
  const { name, vmm_count, lease, silent_since: since } = gone;
  if (!isLeaving(gone)) return `${name}: expunged; what ran there is Failed`;
  const vmms = `its ${vmm_count} VMM${vmm_count === 1 ? '' : 's'}`;
  const awaits = gone.expunge_awaits ?? (lease === null ? 'sled' : 'lease');
  return colours.red(
    {
      lease: `${name}: it may hold its lease: ${vmms} become Failed when that has lapsed`,
      sled: `${name}: ${since == null ? 'it answers, so it is powered on' : `it was powered on when it was expunged, and gives no answer since ${since}`}: ${vmms} become Failed when it has ended them. If it does not, power it off and expunge it again`,
      word: `${name}: none of its certificates is good (each was revoked, or has expired): it may not hear that it is to end its guests, and is not believed that it has. Power it off and expunge it again ("mooring sled expunge ${name}"): ${vmms} become Failed then`,
    }[awaits],
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
