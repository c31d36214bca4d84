import type { Command } from 'commander';
import { type ApiOptions, collect, contextOf, withApiOptions } from '../context.ts';
import { table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring network …`. */
export function addNetworkCommands(program: Command): void {
  const network = program.command('network').description(SUMMARIES.network);
  withApiOptions(network.command('list'))
    .description('list where each instance lives, as sled agents are told')
    .action(async (options: ApiOptions) => {
      const context = contextOf(options);
      const found = await collect(context.client.listNetwork());
      const names = new Map<string, string>();
      if (!context.json) {
        for await (const { id, name } of context.client.listSleds()) names.set(id, name);
        for await (const { id, name } of context.client.listInstances()) names.set(id, name);
      }
      context.print(found, () =>
        table(
          ['INSTANCE', 'SLED', 'ADDRESS', 'GENERATION', 'VMM'],
          found.map((one) => [
            names.get(one.instance_id) ?? one.instance_id,
            names.get(one.sled_id ?? '') ?? one.sled_id ?? '-',
            one.address ?? '-',
            String(one.generation),
            one.vmm_id ?? '-',
          ]),
        ),
      );
    });
}
