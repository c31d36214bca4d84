import { type Logger, pino } from 'pino';

/** A process's log: JSON lines on standard error, `MOORING_LOG_LEVEL` (default `info`) and above. */
export function createLog(component: string, level = process.env.MOORING_LOG_LEVEL ?? 'info'): Logger {
  return pino(
    { name: component, level, redact: ['*.apiKey', '*.databaseUrl'] },
    pino.destination({ dest: 2, sync: true }),
  );
}
