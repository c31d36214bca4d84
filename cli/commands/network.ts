import type { Command } from 'commander';
import type { NetworkEntry } from '../../wire/network-protocol.ts';
import { contextOf, withApiOptions } from '../context.ts';
import { table } from '../output.ts';

/** Adds `mooring network …`. */
export function addNetworkCommands(program: Command): void {
  const network = program.command('network').description('see where the network reaches instances');
  withApiOptions(network.command('list'))
    .description('list where each instance lives, as sled agents are told')
    .action(async (options: { apiUrl: string; project: string; json?: boolean }) => {
      const context = contextOf(options);
      const found: NetworkEntry[] = [];
      for await (const one of context.client.listNetwork()) found.push(one);
      const names = new Map<string, string>();
      if (!context.json) {
        for await (const sled of context.client.listSleds()) names.set(sled.id, sled.name);
        for await (const instance of context.client.listInstances()) names.set(instance.id, instance.name);
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
