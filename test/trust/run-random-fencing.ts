/** `npm run fencing`: see `--help`. */
import { randomInt } from 'node:crypto';
import { Command } from 'commander';
import { colours } from '../../cli/format.ts';
import { printJson } from '../../cli/output.ts';
import { runRandomFencing } from './random-fencing.ts';

const program = new Command('fencing')
  .description('Faults at random on sled agents with fencing, their network, the API and the database; then checks.')
  .option('--minutes <n>', 'how long faults go on', Number, 1)
  .option('--seed <n>', 'the same seed draws the same faults; drawn when absent', Number)
  .option('--json', 'print the report as JSON')
  .action(async (options: { minutes: number; seed?: number; json?: boolean }) => {
    const seed = options.seed ?? randomInt(2 ** 31);
    const begun = performance.now();
    const print = (message: string) =>
      options.json || console.log(`${colours.dim(`${((performance.now() - begun) / 1000).toFixed(1)} s`)} ${message}`);
    print(`seed ${seed}; again with: npm run fencing -- --seed ${seed} --minutes ${options.minutes}`);
    const report = await runRandomFencing({ seed, durationMs: options.minutes * 60_000, print });
    if (options.json) printJson(report);
    else {
      const faults = Object.entries(report.faults).map(([kind, times]) => `${kind}: ${times}`);
      console.log(
        `${colours.green('✓')} ${report.seconds} s, ${faults.sort().join(', ')}; ${report.declarations} declarations that a sled is dead; guests began ${report.guestsBegun} times, never two copies of one at a time; the doctor finds nothing`,
      );
    }
  });

try {
  await program.parseAsync();
} catch (error) {
  console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
