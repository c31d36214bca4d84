import { type Command, InvalidArgumentError, Option } from 'commander';
import { authorityOption, externalParts, openAuthority, runUntilSignal } from '../processes.ts';

/** Adds `mooring worker`. Heavy modules are loaded when it runs. */
export function addWorkerCommand(program: Command): void {
  program
    .command('worker')
    .description('run one worker process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .addOption(authorityOption())
    .option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here', process.env.MOORING_METRICS_LISTEN)
    .addOption(
      new Option('--audit-days <n>', 'how long audit records are kept, in days')
        .argParser(parseDays)
        .default(90)
        .env('MOORING_AUDIT_DAYS'),
    )
    .action(async (options: { metrics?: string; authority?: string; auditDays: number }) => {
      const parts = await externalParts();
      const { startWorker } = await import('../../worker/worker.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../platform/telemetry/log.ts');
      await runUntilSignal(
        async () => {
          const authority = await openAuthority(options.authority);
          await migrateDatabase(parts.databaseUrl);
          return startWorker({
            ...parts,
            authority,
            log: createLog('worker'),
            metricsListen: options.metrics,
            auditDays: options.auditDays,
          });
        },
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
