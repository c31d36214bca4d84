/** The `mooring` command. */
import { Command } from 'commander';
import { MooringApiError } from '../client/mooring-client.ts';
import { addAccessCommands } from './commands/access.ts';
import { addAffinityGroupCommands } from './commands/affinity-group.ts';
import { addApiCommand } from './commands/api.ts';
import { addAuditCommand } from './commands/audit.ts';
import { addCompletionCommands } from './commands/completion.ts';
import { addDemoCommand } from './commands/demo.ts';
import { addDeploymentCommands } from './commands/deployment.ts';
import { addDoctorCommand } from './commands/doctor.ts';
import { addInstanceCommands } from './commands/instance.ts';
import { addNetworkCommands } from './commands/network.ts';
import { addOperationCommands } from './commands/operations.ts';
import { addProjectCommands } from './commands/projects.ts';
import { addReconcileCommands } from './commands/reconcile.ts';
import { addSledAgentCommand } from './commands/sled-agent.ts';
import { addAuthorityCommands } from './commands/sled-identity.ts';
import { addSledCommands } from './commands/sleds.ts';
import { addTopCommand } from './commands/top.ts';
import { addUpCommand } from './commands/up.ts';
import { addWorkerCommand } from './commands/worker.ts';
import { StillRunning } from './follow.ts';
import { colours } from './format.ts';

const program = new Command('mooring')
  .description('Keeps virtual machines tied to physical servers.')
  .showHelpAfterError('(add --help for what there is)')
  // An option belongs to the command whose name it follows: "sled-agent" and "sled-agent join" share names of options.
  .enablePositionalOptions()
  .addHelpText(
    'after',
    `
Examples:
  mooring demo                              play the main job, on parts of its own
  mooring up --data ./data                  run a stack, and keep its data
  mooring instance create web --memory 2GiB
  mooring instance migrate web --to sled-2
  mooring instance watch web --until running
  mooring doctor --at-rest                  check every invariant of a quiet installation`,
  );
addUpCommand(program);
addWorkerCommand(program);
addApiCommand(program);
addSledAgentCommand(program);
addDemoCommand(program);
addInstanceCommands(program);
addAffinityGroupCommands(program);
addSledCommands(program);
addProjectCommands(program);
addNetworkCommands(program);
addOperationCommands(program);
addAccessCommands(program);
addAuditCommand(program);
addTopCommand(program);
addCompletionCommands(program);
addDoctorCommand(program);
addReconcileCommands(program);
addDeploymentCommands(program);
addAuthorityCommands(program);

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof StillRunning && !process.argv.includes('--json')) {
    console.error(error.message);
    process.exit(error.exitCode);
  }
  const message = error instanceof Error ? error.message : String(error);
  if (process.argv.includes('--json')) {
    const details =
      error instanceof MooringApiError
        ? { status: error.status, error_code: error.errorCode, request_id: error.requestId }
        : {};
    console.error(JSON.stringify({ message, ...details }));
  } else console.error(`${colours.red('error:')} ${message}`);
  // What a command has left open must not keep it: a service manager waits for its end.
  process.exit(error instanceof StillRunning ? error.exitCode : 1);
}
