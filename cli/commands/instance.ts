import type { Command } from 'commander';
import { MooringApiError } from '../../client/mooring-client.ts';
import type { InstanceCreated } from '../../wire/operator-api/instances.ts';
import { type ApiOptions, type CommandContext, collect, contextOf, subcommandsOf } from '../context.ts';
import { FailedOperation } from '../follow.ts';
import { parseSize } from '../format.ts';
import { SUMMARIES } from '../summaries.ts';
import { addInstanceObservationCommands } from './instance-observation.ts';
import { addInstanceOperationCommands, type FollowFlags, followAndPrint } from './instance-operations.ts';
import { instanceTable, printInstance } from './instance-table.ts';

/** Adds `mooring instance …`. */
export function addInstanceCommands(program: Command): void {
  const instance = program.command('instance').description(SUMMARIES.instance);
  addCreateCommand(instance);
  addInstanceOperationCommands(instance);
  addRecordCommands(instance);
  addInstanceObservationCommands(instance);
}

interface CreateOptions extends ApiOptions, FollowFlags {
  readonly ncpus: number;
  readonly memory: number;
  readonly description: string;
  readonly hostname?: string;
  readonly start: boolean;
  readonly autoRestartPolicy?: 'never' | 'best_effort';
  readonly restartPriority?: 'critical' | 'normal' | 'low';
  readonly antiAffinityGroup?: string[];
}

function addCreateCommand(instance: Command): void {
  subcommandsOf(instance)('create <name>', 'create an instance and start it')
    .option('--ncpus <n>', 'virtual CPUs', Number, 1)
    .option('--memory <size>', 'memory, for example 512MiB or 2GiB', parseSize, 1024 ** 3)
    .option('--description <text>', 'what it is for', '')
    .option('--hostname <name>', 'its host name; the name by default')
    .option('--no-start', 'leave it stopped')
    .option('--wait', 'wait until it runs')
    .option('--no-follow', 'return at once, with the operation of its start to follow')
    .option('--timeout <seconds>', 'how long to wait', Number)
    .option('--auto-restart-policy <policy>', 'never or best_effort')
    .option('--restart-priority <priority>', 'who comes back first when a sled dies: critical, normal or low')
    .option('--anti-affinity-group <group...>', 'anti-affinity groups to join, by name or id')
    .action(async (name: string, options: CreateOptions) => {
      const context = contextOf(options);
      await ensureDefaultProject(context);
      const { hostname = name, description, ncpus, memory, start } = options;
      const created = await context.client.createInstance(
        {
          name,
          hostname,
          description,
          ncpus,
          memory,
          start,
          auto_restart_policy: options.autoRestartPolicy,
          restart_priority: options.restartPriority,
          anti_affinity_groups: options.antiAffinityGroup,
        },
        { project: context.project, waitSeconds: 0 },
      );
      await followCreated(context, created, options);
    });
}

/**
 * Follows the first start of an instance that was created, and prints the instance. Throws where it was not started, with the
 * reason: it is there all the same.
 */
async function followCreated(context: CommandContext, created: InstanceCreated, flags: CreateOptions): Promise<void> {
  const { start_operation_id: operationId, start_error: refused } = created;
  const notStarted = (error: MooringApiError) =>
    new MooringApiError(error.status, {
      error_code: error.errorCode,
      request_id: error.requestId,
      message: `created, but not started: ${error.message}`,
    });
  const printNow = async () => printInstance(context, await context.client.getInstance(created.id));
  if (refused != null) {
    await printNow();
    throw notStarted(new MooringApiError(refused.status, refused));
  }
  if (!flags.start) return printInstance(context, created);
  const started = { instance: created, operationId: operationId ?? null };
  try {
    await followAndPrint(context, started, `start ${created.name}`, flags, (now) => now.run_state === 'running');
  } catch (error) {
    if (!(error instanceof FailedOperation)) throw error;
    await printNow();
    throw notStarted(error);
  }
}

function addRecordCommands(instance: Command): void {
  const sub = subcommandsOf(instance);

  sub('delete <instance>', 'delete a stopped or failed instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    await context.client.deleteInstance(name, { project: context.project });
    context.print({ deleted: name }, () => `deleted ${name}`);
  });
  sub('show <instance>', 'show an instance').action(async (name: string, options: ApiOptions) => {
    const context = contextOf(options);
    printInstance(context, await context.client.getInstance(name, { project: context.project }));
  });
  sub('list', 'list the instances of a project')
    .option('--state <state>', 'only those that show this state')
    .action(async (options: ApiOptions & { state?: string }) => {
      const context = contextOf(options);
      const found = await collect(context.client.listInstances({ project: context.project, state: options.state }));
      const sleds = new Map<string, string>();
      for await (const { id, name } of context.client.listSleds()) sleds.set(id, name);
      context.print(found, () => instanceTable(found, (sledId) => sleds.get(sledId)));
    });
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
