import type { Command } from 'commander';
import type { InstanceView } from '../../wire/operator-api.ts';
import { type CommandContext, contextOf, findSled, withApiOptions } from '../context.ts';
import { MooringApiError } from '../mooring-client.ts';
import { paintState, table } from '../output.ts';
import { formatSize, parseSize } from '../sizes.ts';

type ApiOptions = { apiUrl: string; project: string; json?: boolean };
const WATCH_EVERY_MS = 250;

/** Adds `mooring instance …`. */
export function addInstanceCommands(program: Command): void {
  const instance = program.command('instance').description('create, start, migrate, stop and look at instances');
  const sub = (usage: string, description: string) => withApiOptions(instance.command(usage)).description(description);

  sub('create <name>', 'create an instance and start it')
    .option('--ncpus <n>', 'virtual CPUs', Number, 1)
    .option('--memory <size>', 'memory, for example 512MiB or 2GiB', parseSize, 1024 ** 3)
    .option('--description <text>', 'what it is for', '')
    .option('--hostname <name>', 'its host name; the name by default')
    .option('--no-start', 'leave it stopped')
    .option('--auto-restart-policy <policy>', 'never or best_effort')
    .option('--anti-affinity-group <group...>', 'anti-affinity groups to join, by name or id')
    .action(
      async (
        name: string,
        options: ApiOptions & {
          ncpus: number;
          memory: number;
          description: string;
          hostname?: string;
          start: boolean;
          autoRestartPolicy?: 'never' | 'best_effort';
          antiAffinityGroup?: string[];
        },
      ) => {
        const context = contextOf(options);
        await ensureDefaultProject(context);
        const { description, ncpus, memory, start } = options;
        const policy =
          options.autoRestartPolicy === undefined ? {} : { auto_restart_policy: options.autoRestartPolicy };
        const groups =
          options.antiAffinityGroup === undefined ? {} : { anti_affinity_groups: options.antiAffinityGroup };
        const made = await context.client.createInstance(
          { name, hostname: options.hostname ?? name, description, ncpus, memory, start, ...policy, ...groups },
          { project: context.project },
        );
        show(context, made);
      },
    );
  sub('start <instance>', 'start an instance; returns when its sled has accepted to run it')
    .option('--timeout <seconds>', 'how long to wait for the saga’s word', Number)
    .action(async (name: string, options: ApiOptions & { timeout?: number }) => {
      const context = contextOf(options);
      const { instance: started } = await context.client.startInstance(name, {
        project: context.project,
        waitSeconds: options.timeout,
      });
      show(context, started);
    });
  sub('stop <instance>', 'stop an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    show(context, await context.client.stopInstance(name, { project: context.project }));
  });
  sub('force-stop <instance>', 'stop an instance whose sled does not answer, because it is powered off or expunged')
    .option(
      '--sled-powered-off',
      'your word that the silent sled is powered off: if it is not, the guest may run twice',
    )
    .action(async (name: string, options: ApiOptions & { sledPoweredOff?: boolean }) => {
      const context = contextOf(options);
      const statement = { sled_powered_off: options.sledPoweredOff ?? false };
      show(context, await context.client.forceStopInstance(name, statement, { project: context.project }));
    });
  sub('reboot <instance>', 'reboot an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    show(context, await context.client.rebootInstance(name, { project: context.project }));
  });
  sub('migrate <instance>', 'live-migrate an instance to another sled')
    .requiredOption('--to <sled>', 'the destination sled, by name or id')
    .option('--timeout <seconds>', 'how long to wait for the saga’s word', Number)
    .action(async (name: string, options: ApiOptions & { to: string; timeout?: number }) => {
      const context = contextOf(options);
      const destination = await findSled(context.client, options.to);
      const { instance: migrating } = await context.client.migrateInstance(name, destination.id, {
        project: context.project,
        waitSeconds: options.timeout,
      });
      show(context, migrating);
    });
  sub('delete <instance>', 'delete a stopped or failed instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    await context.client.deleteInstance(name, { project: context.project });
    context.print({ deleted: name }, () => `deleted ${name}`);
  });
  sub('show <instance>', 'show an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    show(context, await context.client.getInstance(name, { project: context.project }));
  });
  sub('list', 'list the instances of a project')
    .option('--state <state>', 'only those that show this state')
    .action(async (options: ApiOptions & { state?: string }) => {
      const context = contextOf(options);
      const found: InstanceView[] = [];
      for await (const one of context.client.listInstances({ project: context.project, state: options.state }))
        found.push(one);
      const sleds = new Map<string, string>();
      for await (const sled of context.client.listSleds()) sleds.set(sled.id, sled.name);
      context.print(found, () =>
        table(
          ['NAME', 'STATE', 'SLED', 'CPUS', 'MEMORY', 'ID'],
          found.map((one) => [
            one.name,
            paintState(one.run_state),
            sleds.get(one.sled_id ?? '') ?? '-',
            String(one.ncpus),
            formatSize(one.memory),
            one.id,
          ]),
        ),
      );
    });
  sub('watch <instance>', 'print every change of an instance until Ctrl-C')
    .option('--until <state>', 'end when it shows this state')
    .action(async (name: string, options: ApiOptions & { until?: string }) => {
      const context = contextOf(options);
      let last = '';
      for (;;) {
        const seen = await context.client.getInstance(name, { project: context.project });
        const line = `${seen.run_state} ${seen.sled_id ?? '-'}`;
        if (line !== last)
          context.print(
            seen,
            () => `${seen.time_run_state_updated}  ${paintState(seen.run_state)}  ${seen.sled_id ?? ''}`,
          );
        last = line;
        if (seen.run_state === options.until) return;
        await new Promise((resolve) => setTimeout(resolve, WATCH_EVERY_MS));
      }
    });
}

function show(context: CommandContext, instance: InstanceView): void {
  context.print(instance, () =>
    table(
      ['NAME', 'STATE', 'SLED', 'CPUS', 'MEMORY', 'ID'],
      [
        [
          instance.name,
          paintState(instance.run_state),
          instance.sled_id ?? '-',
          String(instance.ncpus),
          formatSize(instance.memory),
          instance.id,
        ],
      ],
    ),
  );
}

/** A newcomer has no project: the default one is made when the first instance is. */
async function ensureDefaultProject({ client, project }: CommandContext): Promise<void> {
  if (project !== 'default') return;
  try {
    await client.createProject({ name: 'default', description: 'made with the first instance' });
  } catch (error) {
    if (!(error instanceof MooringApiError) || error.errorCode !== 'ObjectAlreadyExists') throw error;
  }
}
