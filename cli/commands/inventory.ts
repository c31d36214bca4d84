import { createInterface } from 'node:readline/promises';
import type { Command } from 'commander';
import type { ProjectView } from '../../wire/operator-api/projects.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { colours } from '../colours.ts';
import { contextOf, findSled, withApiOptions } from '../context.ts';
import { followOperation } from '../follow.ts';
import { table } from '../output.ts';
import { formatSize, parseSize } from '../sizes.ts';
import { addDrainCommands } from './drain.ts';
import { addSledIdentityCommands } from './sled-identity.ts';

type ApiOptions = { apiUrl: string; project: string; json?: boolean };

/** Adds `mooring sled …`. */
export function addSledCommands(program: Command): void {
  const sled = program.command('sled').description('add and look at sleds');
  const sub = (usage: string, description: string) => withApiOptions(sled.command(usage)).description(description);

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
    const found: SledView[] = [];
    for await (const one of context.client.listSleds()) found.push(one);
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
      if (!options.yes) await confirmDeath(found);
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

/** Adds `mooring project …`. */
export function addProjectCommands(program: Command): void {
  const project = program.command('project').description('create and look at projects and their quotas');
  const sub = (usage: string, description: string) => withApiOptions(project.command(usage)).description(description);

  sub('create <name>', 'create a project')
    .option('--description <text>', 'what it is for', '')
    .action(async (name: string, options: ApiOptions & { description: string }) => {
      const context = contextOf(options);
      const made = await context.client.createProject({ name, description: options.description });
      context.print(made, () => projectTable([made]));
    });
  sub('list', 'list the projects').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found: ProjectView[] = [];
    for await (const one of context.client.listProjects()) found.push(one);
    context.print(found, () => projectTable(found));
  });
  sub('show <name>', 'show a project').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    const found = await context.client.getProject(name);
    context.print(found, () => projectTable([found]));
  });
  sub('delete <name>', 'delete a project without instances').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    await context.client.deleteProject(name);
    context.print({ deleted: name }, () => `deleted ${name}`);
  });
  sub('quota <name>', 'show or set a project’s quota')
    .option('--cpus <n>', 'virtual CPUs, or "unlimited"')
    .option('--memory <size>', 'memory, for example 64GiB, or "unlimited"')
    .action(async (name: string, options: ApiOptions & { cpus?: string; memory?: string }) => {
      const context = contextOf(options);
      const before = await context.client.getQuota(name);
      const cpus =
        options.cpus === undefined ? before.cpus : options.cpus === 'unlimited' ? null : Number(options.cpus);
      const memory =
        options.memory === undefined
          ? before.memory
          : options.memory === 'unlimited'
            ? null
            : parseSize(options.memory);
      const now =
        options.cpus === undefined && options.memory === undefined
          ? before
          : await context.client.setQuota(name, { cpus, memory });
      context.print(now, () =>
        table(
          ['', 'QUOTA', 'IN USE'],
          [
            ['CPUs', now.cpus === null ? 'unlimited' : String(now.cpus), String(now.cpus_in_use)],
            ['memory', now.memory === null ? 'unlimited' : formatSize(now.memory), formatSize(now.memory_in_use)],
          ],
        ),
      );
    });
}

/** Adds `mooring operation …`. */
export function addOperationCommands(program: Command): void {
  const operation = program.command('operation').description('follow a start or a migration');
  withApiOptions(operation.command('show <id>'))
    .description('show an operation')
    .option('--wait', 'wait for its outcome')
    .action(async (id: string, options: ApiOptions & { wait?: boolean }) => {
      const context = contextOf(options);
      const found = options.wait
        ? await followOperation(context, id, { what: `operation ${id}` })
        : await context.client.getOperation(id);
      context.print(found, () =>
        table(
          ['KIND', 'STATE', 'STEP', 'OUTCOME', 'ERROR'],
          [[found.kind, found.state, found.progress?.title ?? '-', found.outcome ?? '-', found.error?.message ?? '-']],
        ),
      );
    });
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

/** What is known of a sled's fencing, in words. */
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

/** Asks for the operator's word. Throws when it isn't given, or nobody can be asked. */
async function confirmDeath({ name, vmm_count, lease }: SledView): Promise<void> {
  const words = [
    `You vouch that sled "${name}" is powered off, or that nothing runs on it any more.`,
    `Its ${vmm_count} VMM${vmm_count === 1 ? '' : 's'} become Failed, and their instances may be started on other sleds.`,
    'If a guest still runs there, it runs twice from then on, and both write to what they share.',
    ...(lease === null
      ? []
      : ['This sled has fencing: it is declared dead by itself when its lease has lapsed. Waiting is safer.']),
  ];
  if (!process.stdin.isTTY) throw new Error(`${words.join(' ')} Say so with --yes.`);
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`${words.join('\n')}\nType the name of the sled to give your word: `);
    if (answer.trim() !== name) throw new Error('nothing was declared: that is not the name of the sled');
  } finally {
    terminal.close();
  }
}

function projectTable(projects: ProjectView[]): string {
  return table(
    ['NAME', 'DESCRIPTION', 'ID'],
    projects.map((one) => [one.name, one.description, one.id]),
  );
}
