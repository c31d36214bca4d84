import type { InstanceView } from '../../wire/operator-api/instances.ts';
import type { CommandContext } from '../context.ts';
import { formatSize } from '../format.ts';
import { paintState, table } from '../output.ts';

/** Lays instances out as a table. `sledName` gives the name of a sled by its id; one that it does not know is shown as "-". */
export function instanceTable(instances: InstanceView[], sledName: (sledId: string) => string | undefined): string {
  return table(
    ['NAME', 'STATE', 'SLED', 'CPUS', 'MEMORY', 'ID'],
    instances.map((one) => [
      one.name,
      paintState(one.run_state),
      (one.sled_id === null ? undefined : sledName(one.sled_id)) ?? '-',
      String(one.ncpus),
      formatSize(one.memory),
      one.id,
    ]),
  );
}

/** Prints one instance, with its sled by id: its name would cost another call. */
export function printInstance(context: CommandContext, instance: InstanceView): void {
  context.print(instance, () => instanceTable([instance], (sledId) => sledId));
}
