/**
 * Completion for bash, zsh and fish. The scripts hold no names: they run the command itself (`mooring complete -- words…`),
 * which walks its own commands and options, and asks the API for names.
 */
import type { Argument, Command } from 'commander';
import { setting } from '../../platform/settings.ts';
import { collect, contextOf, defaultApiUrl } from '../context.ts';
import { SUMMARIES } from '../summaries.ts';

const SHELLS = ['bash', 'zsh', 'fish'] as const;

const SCRIPTS: Readonly<Record<(typeof SHELLS)[number], string>> = {
  bash: `_mooring() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(mooring complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _mooring mooring`,
  zsh: `#compdef mooring
_mooring() {
  local -a candidates
  candidates=("\${(@f)$(mooring complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -a candidates
}
compdef _mooring mooring`,
  fish: `complete -c mooring -f -a '(mooring complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'`,
};

/** Adds `mooring completion` and the hidden command that its scripts run. */
export function addCompletionCommands(program: Command): void {
  program
    .command('completion')
    .description(SUMMARIES.completion)
    .argument('<shell>', SHELLS.join(', '))
    .action((shell: string) => {
      const script = (SCRIPTS as Record<string, string>)[shell];
      if (script === undefined) throw new Error(`shell: "${shell}" is not known: one of ${SHELLS.join(', ')}`);
      console.log(script);
    });
  program
    .command('complete', { hidden: true })
    .argument('[words...]')
    .action(async (words: string[]) => {
      const found = await candidates(program, words);
      if (found.length > 0) console.log(found.join('\n'));
    });
}

/**
 * The candidates for the last word of a command line. Names of instances, sleds and projects come from the API, where it
 * answers.
 */
export async function candidates(program: Command, words: readonly string[]): Promise<string[]> {
  const last = words.at(-1) ?? '';
  let command = program;
  const given: string[] = [];
  const options: Record<string, string> = {};
  let pending: string | null = null;
  for (const word of words.slice(0, -1)) {
    if (pending !== null) {
      options[pending] = word;
      pending = null;
      continue;
    }
    const option = command.options.find((one) => one.long === word || one.short === word);
    if (option !== undefined) {
      if (option.required || option.optional) pending = option.attributeName();
      continue;
    }
    const next: Command | undefined = command.commands.find((one) => one.name() === word);
    if (next !== undefined && given.length === 0) command = next;
    else given.push(word);
  }
  const matching = (all: readonly string[]) => all.filter((one) => one.startsWith(last));
  if (pending === 'to' || pending === 'sled') return matching(await names('sled', options));
  if (pending === 'project') return matching(await names('project', options));
  if (pending === 'until' || pending === 'state') return matching(['running', 'stopped', 'failed', 'migrating']);
  if (pending !== null) return [];
  if (last.startsWith('-')) {
    return matching([...command.options.map((one) => one.long ?? one.short ?? ''), '--help']);
  }
  if (command.commands.length > 0) {
    const visible = command.createHelp().visibleCommands(command);
    return matching(visible.map((one) => one.name()));
  }
  const argument: Argument | undefined = command.registeredArguments[given.length];
  if (argument === undefined) return [];
  if (argument.name() === 'shell') return matching(SHELLS);
  return matching(await names(argument.name(), options));
}

/** The names of all resources of a kind; none when no API answers. */
async function names(kind: string, options: Record<string, string>): Promise<string[]> {
  const { client, project } = contextOf({
    apiUrl: options.apiUrl ?? defaultApiUrl(),
    project: options.project ?? setting('MOORING_PROJECT') ?? 'default',
  });
  let found: { name: string }[] = [];
  try {
    if (kind === 'instance') found = await collect(client.listInstances({ project }));
    if (kind === 'sled') found = await collect(client.listSleds());
    if (kind === 'project') found = await collect(client.listProjects());
  } catch {
    // An error would be printed into the line that is being completed.
  }
  return found.map(({ name }) => name).sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
}
