/** `npm run soak`: see `--help`. */
import { randomInt } from 'node:crypto';
import { Command } from 'commander';
import { colours } from '../../cli/format.ts';
import { printJson } from '../../cli/output.ts';
import { startCluster } from '../cluster/temporal-cluster.ts';
import { faultKind, makePlan } from './plan.ts';
import { printReport, recordReport } from './report.ts';
import { runSoak } from './soak.ts';

const program = new Command('soak')
  .description(
    'Random operations on many instances while everything is killed and every message may go astray; then checks.',
  )
  .option('--minutes <n>', 'how long operations and faults go on', Number, 1)
  .option('--seed <n>', 'the same seed gives the same plan; drawn when absent', Number)
  .option('--instances <n>', 'how many instances', Number, 200)
  .option('--workers <n>', 'how many worker processes', Number, 2)
  .option('--apis <n>', 'how many API processes', Number, 2)
  .option('--sleds <n>', 'how many sled agents', Number, 4)
  .option('--rate <n>', 'operations a second, on average', Number, 8)
  .option('--without <faults>', 'faults that never come, separated by commas', (names) =>
    names.split(',').map(faultKind),
  )
  .option('--cluster', 'on a cluster of Temporal’s own processes, which is built by Go where it is not there')
  .option('--record <file>', 'append the outcome to this table of runs')
  .option('--keep', 'keep data and logs, also when nothing is wrong')
  .option('--json', 'print the report as JSON')
  .action(async (options) => {
    const seed: number = options.seed ?? randomInt(2 ** 31);
    const { instances, workers, apis, sleds } = options;
    const plan = makePlan({
      seed,
      durationMs: options.minutes * 60_000,
      instances,
      workers,
      apis,
      sleds,
      operationsPerSecond: options.rate,
      ...(options.without === undefined ? {} : { without: options.without }),
    });
    const again = `npm run soak -- --seed ${seed} --minutes ${options.minutes} --instances ${instances} --workers ${workers} --apis ${apis} --sleds ${sleds} --rate ${options.rate}${options.without === undefined ? '' : ` --without ${options.without}`}${options.cluster ? ' --cluster' : ''}`;
    const print = (message: string) => options.json || console.log(`${colours.dim('·')} ${message}`);
    print(`seed ${seed}; again with: ${again}`);
    const report = await runSoak({
      plan,
      keep: options.keep ?? false,
      print,
      ...(options.cluster ? { startTemporal: startCluster } : {}),
    });
    if (options.record !== undefined) await recordReport(options.record, report);
    if (options.json) printJson({ ...report, again });
    else printReport(report, again);
    process.exitCode = report.violations.length === 0 ? 0 : 1;
  });

try {
  await program.parseAsync();
} catch (error) {
  console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
