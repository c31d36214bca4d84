import type { Command } from 'commander';
import type { ProjectView } from '../../wire/operator-api/projects.ts';
import { type ApiOptions, collect, contextOf, subcommandsOf } from '../context.ts';
import { formatSize, parseSize } from '../format.ts';
import { table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring project …`. */
export function addProjectCommands(program: Command): void {
  const project = program.command('project').description(SUMMARIES.project);
  const sub = subcommandsOf(project);

  sub('create <name>', 'create a project')
    .option('--description <text>', 'what it is for', '')
    .action(async (name: string, options: ApiOptions & { description: string }) => {
      const context = contextOf(options);
      const made = await context.client.createProject({ name, description: options.description });
      context.print(made, () => projectTable([made]));
    });
  sub('list', 'list the projects').action(async (options: ApiOptions) => {
    const context = contextOf(options);
    const found = await collect(context.client.listProjects());
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

function projectTable(projects: ProjectView[]): string {
  return table(
    ['NAME', 'DESCRIPTION', 'ID'],
    projects.map((one) => [one.name, one.description, one.id]),
  );
}
