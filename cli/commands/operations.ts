import type { Command } from 'commander';
import { type ApiOptions, contextOf, withApiOptions } from '../context.ts';
import { followOperation } from '../follow.ts';
import { table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring operation …`. */
export function addOperationCommands(program: Command): void {
  const operation = program.command('operation').description(SUMMARIES.operation);
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
