import type { Command } from 'commander';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import type { SledView } from '../../wire/operator-api/sleds.ts';
import { changes } from '../changes.ts';
import { type ApiOptions, type CommandContext, collect, contextOf, withApiOptions } from '../context.ts';
import { colours, formatSize } from '../format.ts';
import { paintState, table } from '../output.ts';
import { sledStatus } from '../sled-status.ts';
import { SUMMARIES } from '../summaries.ts';

const DEFAULT_SECONDS = 1;
const BAR_WIDTH = 20;

interface Fleet {
  readonly sleds: SledView[];
  readonly instances: InstanceView[];
}

/** Adds `mooring top`. */
export function addTopCommand(program: Command): void {
  withApiOptions(program.command('top'))
    .description(SUMMARIES.top)
    .option('--once', 'print it once')
    .option('--every <seconds>', 'how often to look', Number, DEFAULT_SECONDS)
    .action(async (options: ApiOptions & { once?: boolean; every: number }) => {
      const context = contextOf(options);
      const live = !options.once && !context.json && process.stdout.isTTY === true;
      if (live) return showFleet(context, options.every * 1000);
      const fleet = await readFleet(context);
      context.print(summary(fleet), () => drawFleet(fleet));
    });
}

/** Shows the fleet until Ctrl-C, at most once in `everyMs` milliseconds, and only when it changed. */
async function showFleet(context: CommandContext, everyMs: number): Promise<never> {
  let fleet: Fleet | null = null;
  let isDrawn = true;
  const draw = () => {
    if (fleet === null || isDrawn) return;
    isDrawn = true;
    // To the top, the picture, and everything below it cleared: without clearing first it does not flicker.
    process.stdout.write(`\u001b[H${drawFleet(fleet).replaceAll('\n', '\u001b[K\n')}\u001b[K\n\u001b[J`);
  };
  const drawing = setInterval(draw, everyMs);
  try {
    for await (const heard of changes(context.client, { kinds: ['instance', 'sled'], everyMs })) {
      const isFirst = fleet === null;
      if (heard.event === 'look') fleet = await readFleet(context);
      else if (fleet !== null && heard.event === 'instance') replace(fleet.instances, heard.data);
      else if (fleet !== null && heard.event === 'sled') replace(fleet.sleds, heard.data);
      isDrawn = false;
      if (isFirst) draw();
    }
    throw new Error('the stream of changes has ended');
  } finally {
    clearInterval(drawing);
  }
}

/** Puts an object as it is now into a list, or takes it out. */
function replace<Item extends { readonly id: string }>(
  items: Item[],
  { id, object }: { readonly id: string; readonly object: Item | null },
): void {
  const at = items.findIndex((item) => item.id === id);
  const now = object === null ? [] : [object];
  if (at === -1) items.push(...now);
  else items.splice(at, 1, ...now);
}

async function readFleet({ client }: CommandContext): Promise<Fleet> {
  const sleds = await collect(client.listSleds());
  sleds.sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));
  return { sleds, instances: await collect(client.listInstances()) };
}

/** The fleet for programs. */
function summary({ sleds, instances }: Fleet) {
  return {
    sleds: sleds.map((sled) => ({ ...sled, instances: instances.filter((one) => one.sled_id === sled.id).length })),
    instances_by_state: countStates(instances),
    migrations: instances.filter((one) => one.migration_target_sled_id !== null),
  };
}

function countStates(instances: InstanceView[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { run_state } of instances) counts[run_state] = (counts[run_state] ?? 0) + 1;
  return counts;
}

/** Draws a fleet as text. */
function drawFleet({ sleds, instances }: Fleet): string {
  const names = new Map(sleds.map((sled) => [sled.id, sled.name]));
  const states = Object.entries(countStates(instances))
    .map(([state, count]) => `${count} ${paintState(state)}`)
    .join('  ');
  const rows = sleds.map((sled) => [
    colours.bold(sled.name),
    sled.provision_state === 'in_service' ? 'in service' : colours.yellow(sled.provision_state.replace('_', ' ')),
    sledStatus(sled),
    bar(sled.threads_reserved, sled.threads),
    `${sled.threads_reserved}/${sled.threads}`,
    bar(sled.memory_reserved, sled.memory),
    `${formatSize(sled.memory_reserved)}/${formatSize(sled.memory)}`,
    String(instances.filter((one) => one.sled_id === sled.id).length),
  ]);
  const moving = instances
    .filter((one) => one.migration_target_sled_id !== null)
    .map((one) => [
      one.name,
      `${names.get(one.sled_id ?? '') ?? '?'} → ${names.get(one.migration_target_sled_id ?? '') ?? '?'}`,
      paintState(one.run_state),
    ]);
  return [
    `${colours.bold(String(sleds.length))} sleds  ${colours.bold(String(instances.length))} instances  ${states}`,
    '',
    table(['SLED', 'POLICY', 'STATUS', 'THREADS', '', 'MEMORY', '', 'INSTANCES'], rows),
    ...(moving.length === 0 ? [] : ['', table(['MIGRATING', 'WAY', 'STATE'], moving)]),
  ].join('\n');
}

function bar(used: number, of: number): string {
  const share = of === 0 ? 0 : used / of;
  const filled = Math.min(BAR_WIDTH, Math.round(share * BAR_WIDTH));
  const paint = share > 0.9 ? colours.red : share > 0.7 ? colours.yellow : colours.green;
  return `${paint('█'.repeat(filled))}${colours.dim('░'.repeat(BAR_WIDTH - filled))}`;
}
