import { type Command, InvalidArgumentError, Option } from 'commander';
import {
  authorityOption,
  explained,
  externalParts,
  metricsAddress,
  noMigrateOption,
  openAuthority,
  requireFree,
  runUntilSignal,
  settleSchema,
} from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

interface WorkerCommandOptions {
  readonly migrate: boolean;
  readonly metrics?: string;
  readonly authority?: string;
  readonly auditDays: number;
  readonly retentionDays: number;
}

/** Adds `mooring worker`. Heavy modules are loaded when it runs. */
export function addWorkerCommand(program: Command): void {
  program
    .command('worker')
    .description(SUMMARIES.worker)
    .addOption(authorityOption())
    .addOption(noMigrateOption())
    .addOption(
      new Option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here').env('MOORING_METRICS_LISTEN'),
    )
    .addOption(
      new Option('--audit-days <n>', 'how long audit records are kept, in days')
        .argParser(parseDays)
        .default(90)
        .env('MOORING_AUDIT_DAYS'),
    )
    .addOption(
      new Option(
        '--retention-days <n>',
        'how long deleted instances, operations, migrations and VMMs that are over are kept, in days',
      )
        .argParser(parseRetention)
        .default(30)
        .env('MOORING_RETENTION_DAYS'),
    )
    .action(async (options: WorkerCommandOptions) => {
      const parts = await externalParts();
      await requireFree(metricsAddress(options.metrics));
      const { startWorker } = await import('../../worker/worker.ts');
      const { createLog } = await import('../../platform/telemetry/log.ts');
      await runUntilSignal(
        () =>
          explained(parts, async () => {
            const authority = await openAuthority(options.authority);
            const log = createLog('worker');
            await settleSchema(parts.databaseUrl, options.migrate, log);
            return startWorker({
              ...parts,
              authority,
              log,
              metricsListen: options.metrics,
              auditDays: options.auditDays,
              retentionDays: options.retentionDays,
            });
          }),
        ({ metricsUrl }) =>
          console.log(`worker: running${metricsUrl === null ? '' : `, metrics at ${metricsUrl}/metrics`}`),
      );
    });
}

function parseDays(text: string): number {
  const days = Number(text);
  if (!Number.isFinite(days) || days <= 0) throw new InvalidArgumentError('a number of days above 0 is needed');
  return days;
}

/** Operations can be read for at least a day: section 5 of docs/design.md. */
function parseRetention(text: string): number {
  const days = Number(text);
  if (!Number.isFinite(days) || days < 1) throw new InvalidArgumentError('a number of days, at least 1, is needed');
  return days;
}
