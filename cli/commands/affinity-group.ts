import { type Command, Option } from 'commander';
import { AFFINITY_KINDS, AFFINITY_POLICIES, type AffinityKind, type AffinityPolicy } from '../../model/states.ts';
import type { AffinityGroupMember, AffinityGroupView } from '../../wire/operator-api/affinity-groups.ts';
import { type ApiOptions, collect, contextOf, subcommandsOf } from '../context.ts';
import { paintState, table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

const COMMANDS: Readonly<Record<AffinityKind, { name: string; description: string }>> = {
  affinity: { name: 'affinity-group', description: SUMMARIES['affinity-group'] },
  anti_affinity: { name: 'anti-affinity-group', description: SUMMARIES['anti-affinity-group'] },
};

/** Adds `mooring affinity-group …` and `mooring anti-affinity-group …`. */
export function addAffinityGroupCommands(program: Command): void {
  for (const kind of AFFINITY_KINDS) addCommandsOf(kind, program);
}

function addCommandsOf(kind: AffinityKind, program: Command): void {
  const group = program.command(COMMANDS[kind].name).description(COMMANDS[kind].description);
  const sub = subcommandsOf(group);

  sub('create <group>', 'create a group')
    .addOption(
      new Option('--policy <policy>', 'where it can’t be honoured: fail the placement, or allow it')
        .choices(AFFINITY_POLICIES)
        .default('fail'),
    )
    .option('--description <text>', 'what it is for', '')
    .action(async (name: string, options: ApiOptions & { policy: AffinityPolicy; description: string }) => {
      const context = contextOf(options);
      const { policy, description } = options;
      const made = await context.client.createAffinityGroup(
        kind,
        { name, description, policy, failure_domain: 'sled' },
        { project: context.project },
      );
      context.print(made, () => groupTable([made]));
    });
  sub('list', 'list the groups of a project')
    .option('--instance <instance>', 'only those that this instance is in')
    .action(async (options: ApiOptions & { instance?: string }) => {
      const context = contextOf(options);
      const { client, project } = context;
      const found = await collect(
        options.instance === undefined
          ? client.listAffinityGroups(kind, { project })
          : client.listAffinityGroupsOf(kind, options.instance, { project }),
      );
      context.print(found, () => groupTable(found));
    });
  sub('show <group>', 'show a group and its members').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    const { client, project } = context;
    const found = await client.getAffinityGroup(kind, name, { project });
    const members = await collect(client.listAffinityMembers(kind, name, { project }));
    context.print({ ...found, members }, () => `${groupTable([found])}\n\n${memberTable(members)}`);
  });
  sub('delete <group>', 'delete a group; its members stay where they are').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      await context.client.deleteAffinityGroup(kind, name, { project: context.project });
      context.print({ deleted: name }, () => `deleted ${name}`);
    },
  );
  sub('add <group> <instance>', 'add an instance that is not placed on a sled').action(
    async (name: string, instance: string, options: ApiOptions) => {
      const context = contextOf(options);
      const added = await context.client.addAffinityMember(kind, name, instance, { project: context.project });
      context.print(added, () => memberTable([added]));
    },
  );
  sub('remove <group> <instance>', 'take an instance out of a group').action(
    async (name: string, instance: string, options: ApiOptions) => {
      const context = contextOf(options);
      await context.client.removeAffinityMember(kind, name, instance, { project: context.project });
      context.print({ group: name, removed: instance }, () => `removed ${instance} from ${name}`);
    },
  );
}

function groupTable(groups: AffinityGroupView[]): string {
  return table(
    ['NAME', 'POLICY', 'FAILURE DOMAIN', 'DESCRIPTION', 'ID'],
    groups.map((one) => [one.name, one.policy, one.failure_domain, one.description, one.id]),
  );
}

function memberTable(members: AffinityGroupMember[]): string {
  return table(
    ['MEMBER', 'STATE', 'ID'],
    members.map(({ value }) => [value.name, paintState(value.run_state), value.id]),
  );
}
