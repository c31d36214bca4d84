import type { Command } from 'commander';
import { MooringApiError, type OperationStarted } from '../../client/mooring-client.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { colours } from '../colours.ts';
import { type CommandContext, contextOf, findSled, withApiOptions } from '../context.ts';
import { followOperation, StillRunning } from '../follow.ts';
import { paintState, printJson, StatusLine, table } from '../output.ts';
import { formatSize, parseSize } from '../sizes.ts';

type ApiOptions = { apiUrl: string; project: string; json?: boolean };
const WATCH_EVERY_MS = 250;
const CONSOLE_EVERY_MS = 100;
const SAY_WAITING_AFTER_MS = 3_000;

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
    .option('--restart-priority <priority>', 'who comes back first when a sled dies: critical, normal or low')
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
          restartPriority?: 'critical' | 'normal' | 'low';
          antiAffinityGroup?: string[];
        },
      ) => {
        const context = contextOf(options);
        await ensureDefaultProject(context);
        const { description, ncpus, memory, start } = options;
        const policy =
          options.autoRestartPolicy === undefined ? {} : { auto_restart_policy: options.autoRestartPolicy };
        const priority = options.restartPriority === undefined ? {} : { restart_priority: options.restartPriority };
        const groups =
          options.antiAffinityGroup === undefined ? {} : { anti_affinity_groups: options.antiAffinityGroup };
        const made = await context.client.createInstance(
          {
            name,
            hostname: options.hostname ?? name,
            description,
            ncpus,
            memory,
            start,
            ...policy,
            ...priority,
            ...groups,
          },
          { project: context.project },
        );
        show(context, made);
      },
    );
  sub('start <instance>', 'start an instance; returns when its sled has accepted to run it')
    .option('--wait', 'wait until it runs')
    .option('--no-follow', 'return at once, with the operation to follow')
    .option('--timeout <seconds>', 'how long to wait', Number)
    .action(async (name: string, options: ApiOptions & FollowFlags) => {
      const context = contextOf(options);
      const { project } = context;
      const started = await context.client.startInstance(name, { project, waitSeconds: 0 });
      await settle(context, started, `start ${name}`, options, (now) => now.run_state === 'running');
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
    .option('--wait', 'wait until it runs there, or its migration has failed')
    .option('--no-follow', 'return at once, with the operation to follow')
    .option('--timeout <seconds>', 'how long to wait', Number)
    .action(async (name: string, options: ApiOptions & FollowFlags & { to: string }) => {
      const context = contextOf(options);
      const { project } = context;
      const destination = await findSled(context.client, options.to);
      const migrating = await context.client.migrateInstance(name, destination.id, { project, waitSeconds: 0 });
      const what = `migrate ${name} to ${destination.name}`;
      const settled = await settle(context, migrating, what, options, (now) => now.run_state !== 'migrating');
      if (options.wait && settled.sled_id !== destination.id) {
        throw new Error(`${name} did not move to ${destination.name}: it is ${settled.run_state} where it was`);
      }
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
  sub('history <instance>', 'tell an instance’s story: what happened to it, when, and where to look further').action(
    async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const { items, complete, instance_id } = await context.client.getInstanceHistory(name, {
        project: context.project,
      });
      context.print({ instance_id, complete, items }, () => {
        const rows = items.map((item) => [
          colours.dim(item.time),
          item.kind,
          item.text,
          colours.dim(item.web_ui ?? ''),
        ]);
        const told = table(['TIME', 'WHAT', 'HAPPENED', 'LINK'], rows);
        return complete
          ? told
          : `${told}\n${colours.yellow('Temporal did not answer: its workflows are missing here.')}`;
      });
    },
  );
  sub('console <instance>', 'show the serial console and follow it, also across a migration, until Ctrl-C')
    .option('--no-follow', 'end when everything that is there was shown')
    .action(async (name: string, options: ApiOptions & { follow: boolean }) => {
      const context = contextOf(options);
      for await (const piece of followConsole(context, name, options.follow))
        if (context.json) printJson({ data: piece.data.toString('utf8'), last_byte_offset: piece.endOffset });
        else process.stdout.write(piece.data);
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

interface FollowFlags {
  readonly wait?: boolean;
  readonly follow: boolean;
  readonly timeout?: number;
}

/** Follows what a call began, as far as its flags say, and shows the instance. */
async function settle(
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
    line.show(`${what}: ${now.run_state === 'migrating' ? await migrationLine(context, now.id) : now.run_state}`);
    await new Promise((resolve) => setTimeout(resolve, WATCH_EVERY_MS));
    now = await context.client.getInstance(instance.id);
  }
  line.clear();
  show(context, now);
  if (!follow && operationId !== null && !context.json) {
    console.log(`follow it with: mooring operation show ${operationId} --wait`);
  }
  return now;
}

/** How far a migration is, in one line. Who waits for it need not hear that it can't be said now. */
async function migrationLine({ client }: CommandContext, instanceId: string): Promise<string> {
  return client.getMigration(instanceId).then(
    ({ summary }) => `migration ${summary}`,
    () => 'migrating',
  );
}

/**
 * An instance's serial console, piece by piece. Following it goes on through what passes: a sled that doesn't answer, a
 * hand-over, a VM that is stopped and started again. Throws what can't pass, and without following everything.
 */
async function* followConsole(
  { client, project }: CommandContext,
  name: string,
  follow: boolean,
): AsyncGenerator<{ data: Buffer; endOffset: number }> {
  let offset = 0;
  let waitingSince: number | null = null;
  for (;;) {
    let read = 0;
    try {
      const piece = await client.readSerialConsole(name, { project, fromStart: offset });
      read = piece.data.length;
      if (piece.last_byte_offset < offset) {
        console.error('[the guest has begun anew]');
        offset = 0;
        continue;
      }
      offset = piece.last_byte_offset;
      waitingSince = null;
      if (read > 0) yield { data: Buffer.from(piece.data), endOffset: offset };
    } catch (error) {
      const passes = error instanceof MooringApiError && (error.status === 503 || (error.status === 409 && offset > 0));
      if (!follow || !passes) throw error;
      // A hand-over passes in less: only what lasts is worth a word.
      if (waitingSince === null) waitingSince = performance.now();
      else if (performance.now() > waitingSince + SAY_WAITING_AFTER_MS) {
        console.error(`[${error.message}]`);
        waitingSince = Number.POSITIVE_INFINITY;
      }
    }
    if (read > 0) continue;
    if (!follow) return;
    await new Promise((resolve) => setTimeout(resolve, CONSOLE_EVERY_MS));
  }
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
