import type { Command } from 'commander';
import type { RunningStack } from '../../stack/stack.ts';
import { DEFAULT_API_PORT } from '../context.ts';
import { colours } from '../format.ts';
import { printJson } from '../output.ts';
import {
  type HypervisorChoice,
  hostsOption,
  hypervisorOption,
  noMigrateOption,
  requireFree,
  startUntilSignal,
} from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

interface UpOptions {
  readonly data?: string;
  readonly apiPort: number;
  readonly temporalUiPort: number;
  readonly sleds: number;
  readonly hypervisor: HypervisorChoice;
  readonly requireTokens?: boolean;
  readonly hosts?: readonly string[];
  readonly sledTls?: boolean;
  readonly testEndpoints?: boolean;
  readonly migrate: boolean;
  readonly json?: boolean;
}

/** Adds `mooring up`. Heavy modules are loaded when it runs. */
export function addUpCommand(program: Command): void {
  program
    .command('up')
    .description(SUMMARIES.up)
    .option('--data <dir>', 'keep the data here between runs; thrown away by default')
    .option('--api-port <port>', 'port of the API; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-port <port>', 'port of the Temporal Web UI; 0 chooses one', Number, 0)
    .option('--sleds <n>', 'how many sleds; 0 to bring your own', Number, 3)
    .addOption(hypervisorOption())
    .option('--require-tokens', 'ask operators for a token; the stack’s own is found by every command of its user')
    .addOption(hostsOption())
    .option('--sled-tls', 'sleds join by invitation and speak by certificates; none is added without')
    .addOption(noMigrateOption())
    .option('--test-endpoints', 'let the sleds take planted faults over HTTP')
    .option('--json', 'print one line of JSON when it is ready')
    .action(async ({ data, json, ...options }: UpOptions) => {
      await requireFree([
        { host: '127.0.0.1', port: options.apiPort, option: '--api-port' },
        { host: '127.0.0.1', port: options.temporalUiPort, option: '--temporal-ui-port' },
      ]);
      const { startStack } = await import('../../stack/stack.ts');
      const { started: stack, shutdown } = await startUntilSignal((signal) =>
        startStack({
          ...options,
          dataDir: data,
          signal,
          onProgress: (message) => json || console.log(`${colours.green('✓')} ${message}`),
        }),
      );
      if (json) printJson(addressesOf(stack));
      else console.log(nextSteps(stack, options.hypervisor));
      await shutdown;
      if (!json) console.log('stopping…');
      await stack.stop();
    });
}

function addressesOf(stack: RunningStack) {
  return {
    api_url: stack.apiUrl,
    console_url: stack.consoleUrl,
    sled_url: stack.api.sledUrl,
    temporal_address: stack.temporalAddress,
    temporal_ui_url: stack.temporalUiUrl,
    token_file: stack.adminToken.file,
    sleds: stack.sleds.map(({ id, name, agent }) => ({ id, name, address: agent.address })),
  };
}

/** The commands to try on a stack that is ready. */
function nextSteps({ apiUrl, consoleUrl, temporalUiUrl }: RunningStack, hypervisor: HypervisorChoice): string {
  const flag = apiUrl.endsWith(`:${DEFAULT_API_PORT}`) ? '' : ` --api-url ${apiUrl}`;
  return [
    '',
    `${colours.bold('Ready.')} In another terminal:`,
    `  mooring instance create web${hypervisor === 'qemu' ? ' --memory 128MiB' : ''}${flag}`,
    ...(hypervisor === 'qemu' ? [`  mooring instance console web${flag}`] : []),
    `  mooring instance migrate web --to sled-2${flag}`,
    `  mooring instance list${flag}`,
    ...(consoleUrl === null ? [] : [`Look at the fleet at ${colours.cyan(consoleUrl)}`]),
    ...(temporalUiUrl === null ? [] : [`Watch the sagas at ${colours.cyan(temporalUiUrl)}`]),
    'Ctrl-C stops everything.',
  ].join('\n');
}
