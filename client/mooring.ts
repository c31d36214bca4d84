/** The `mooring` command. */
import { Command } from 'commander';
import pc from 'picocolors';
import { addAffinityGroupCommands } from './commands/affinity-group.ts';
import { addInstanceCommands } from './commands/instance.ts';
import { addOperationCommands, addProjectCommands, addSledCommands } from './commands/inventory.ts';
import { addNetworkCommands } from './commands/network.ts';
import { addProcessCommands } from './commands/processes.ts';
import { addReconcileCommands } from './commands/reconcile.ts';
import { MooringApiError } from './mooring-client.ts';

const program = new Command('mooring')
  .description('Keeps virtual machines tied to physical servers.')
  .showHelpAfterError('(add --help for what there is)')
  .addHelpText(
    'after',
    `
Examples:
  mooring demo                              play the main job, on parts of its own
  mooring up --data ./data                  run a stack, and keep its data
  mooring instance create web --memory 2GiB
  mooring instance migrate web --to sled-2
  mooring instance watch web --until running`,
  );
addProcessCommands(program);
addInstanceCommands(program);
addAffinityGroupCommands(program);
addSledCommands(program);
addProjectCommands(program);
addNetworkCommands(program);
addOperationCommands(program);
addReconcileCommands(program);

try {
  await program.parseAsync();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  if (process.argv.includes('--json')) {
    const details =
      error instanceof MooringApiError
        ? { status: error.status, error_code: error.errorCode, request_id: error.requestId }
        : {};
    console.error(JSON.stringify({ message, ...details }));
  } else console.error(`${pc.red('error:')} ${message}`);
  process.exitCode = 1;
}
