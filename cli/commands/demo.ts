import type { Command } from 'commander';
import { type HypervisorChoice, hypervisorOption } from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring demo`. Heavy modules are loaded when it runs. */
export function addDemoCommand(program: Command): void {
  program
    .command('demo')
    .description(SUMMARIES.demo)
    .option('--keep', 'leave everything running afterwards')
    .option('--scenario <file>', 'the scenario to play')
    .addOption(hypervisorOption())
    .option('--sled-tls', 'sleds join by invitation and speak by certificates')
    .action(async (options: { keep?: boolean; scenario?: string; hypervisor: HypervisorChoice; sledTls?: boolean }) => {
      const { runDemo } = await import('../run-demo.ts');
      process.exitCode = (await runDemo({ ...options, scenarioFile: options.scenario })) ? 0 : 1;
    });
}
