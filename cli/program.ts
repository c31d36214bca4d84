/** The commands of `mooring`. Only the code of the one that is given is loaded: reading all of it takes longer than most of them. */
import { Command } from 'commander';
import { SUMMARIES } from './summaries.ts';

type CommandName = keyof typeof SUMMARIES;
/** The commands that run for long, by the settings of whoever set their machine up. */
const SERVICES: readonly string[] = ['worker', 'api', 'sled-agent'];
type AddCommands = (program: Command) => void;

/** Which commands are made together, and what makes them; in the order in which they are listed. */
const GROUPS: readonly { readonly names: readonly CommandName[]; readonly load: () => Promise<AddCommands> }[] = [
  { names: ['up'], load: async () => (await import('./commands/up.ts')).addUpCommand },
  { names: ['worker'], load: async () => (await import('./commands/worker.ts')).addWorkerCommand },
  { names: ['api'], load: async () => (await import('./commands/api.ts')).addApiCommand },
  { names: ['migrate'], load: async () => (await import('./commands/migrate.ts')).addMigrateCommand },
  { names: ['sled-agent'], load: async () => (await import('./commands/sled-agent.ts')).addSledAgentCommand },
  { names: ['demo'], load: async () => (await import('./commands/demo.ts')).addDemoCommand },
  { names: ['instance'], load: async () => (await import('./commands/instance.ts')).addInstanceCommands },
  {
    names: ['affinity-group', 'anti-affinity-group'],
    load: async () => (await import('./commands/affinity-group.ts')).addAffinityGroupCommands,
  },
  { names: ['sled'], load: async () => (await import('./commands/sleds.ts')).addSledCommands },
  { names: ['project'], load: async () => (await import('./commands/projects.ts')).addProjectCommands },
  { names: ['network'], load: async () => (await import('./commands/network.ts')).addNetworkCommands },
  { names: ['operation'], load: async () => (await import('./commands/operations.ts')).addOperationCommands },
  {
    names: ['token', 'login', 'logout', 'whoami'],
    load: async () => (await import('./commands/access.ts')).addAccessCommands,
  },
  { names: ['audit'], load: async () => (await import('./commands/audit.ts')).addAuditCommand },
  { names: ['top'], load: async () => (await import('./commands/top.ts')).addTopCommand },
  { names: ['completion'], load: async () => (await import('./commands/completion.ts')).addCompletionCommands },
  { names: ['doctor'], load: async () => (await import('./commands/doctor.ts')).addDoctorCommand },
  { names: ['reconcile'], load: async () => (await import('./commands/reconcile.ts')).addReconcileCommands },
  { names: ['deployment'], load: async () => (await import('./commands/deployment.ts')).addDeploymentCommands },
  { names: ['authority'], load: async () => (await import('./commands/sled-identity.ts')).addAuthorityCommands },
];

/**
 * Runs the command that these words give, and resolves when it is done. Throws what the command throws; ends the process, as
 * commander does, where the words are no command.
 */
export async function runProgram(words: readonly string[]): Promise<void> {
  forgetEmptySettings(process.env);
  const [first] = words;
  if (first === '--version' || first === '-V') {
    const { describeBuild } = await import('../platform/host/build-info.ts');
    console.log(describeBuild(words.includes('--json')));
    return;
  }
  const program = makeProgram();
  await addCommands(program, first);
  program.hook('preAction', async (_, command) => {
    const { checkSettings } = await import('../platform/settings.ts');
    // Who runs a service has set its environment for it; on a person's terminal it is full of other things.
    const notes = checkSettings();
    if (SERVICES.includes(command.name())) for (const note of notes) console.error(`warning: ${note}`);
  });
  await program.parseAsync(words, { from: 'user' });
}

/** Forgets our settings that are empty: environment files and charts name each, and leave empty what isn't set. */
export function forgetEmptySettings(environment: NodeJS.ProcessEnv): void {
  for (const [name, value] of Object.entries(environment))
    if (name.startsWith('MOORING_') && value?.trim() === '') delete environment[name];
}

/** All commands there are. */
export async function makeWholeProgram(): Promise<Command> {
  const program = makeProgram();
  await addCommands(program, 'help');
  return program;
}

function makeProgram(): Command {
  return (
    new Command('mooring')
      .description('Keeps virtual machines tied to physical servers.')
      .option('-V, --version', 'print the version, the commit and the build id of the workflows')
      .showHelpAfterError('(add --help for what there is)')
      // An option belongs to the command whose name it follows: "sled-agent" and "sled-agent join" share names of options.
      .enablePositionalOptions()
      .configureHelp({ subcommandTerm: (command) => command.name() })
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
      )
  );
}

/**
 * Makes the commands that the words ask for. `mooring --help` lists the others by their summaries alone; `complete`, which
 * completion scripts run, and `help`, which shows any command's, get all of them.
 */
async function addCommands(program: Command, first: string | undefined): Promise<void> {
  const needsAll = first === 'help' || first === 'complete';
  for (const { names, load } of GROUPS) {
    if (needsAll || names.some((name) => name === first)) (await load())(program);
    else for (const name of names) program.command(name).description(SUMMARIES[name]);
  }
}
