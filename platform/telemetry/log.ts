import { type Logger, pino } from 'pino';

/** What a line must never show, wherever a caller has put it. */
const SECRETS = ['apiKey', 'databaseUrl', 'token', 'secret', 'authorization'].flatMap((name) => [
  name,
  `*.${name}`,
  `*.headers.${name}`,
  `*.*.${name}`,
]);

/** A process's log: JSON lines on standard error, `MOORING_LOG_LEVEL` (default `info`) and above. */
export function createLog(component: string, level = process.env.MOORING_LOG_LEVEL ?? 'info'): Logger {
  return pino({ name: component, level, redact: SECRETS }, pino.destination({ dest: 2, sync: true }));
}
