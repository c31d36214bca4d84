/**
 * `platform/telemetry/` is how a process can be observed from outside: its log (this file, and the fields of its lines), its
 * metrics, its health, and its traces.
 */
import { type DestinationStream, type Logger, pino, stdTimeFunctions } from 'pino';
import { setting } from '../settings.ts';

type Level = NonNullable<ReturnType<typeof setting<'MOORING_LOG_LEVEL'>>>;

/** The fields whose values a line must never show, wherever a caller has put them. */
const SECRETS = ['apiKey', 'databaseUrl', 'token', 'secret', 'authorization'].flatMap((name) => [
  name,
  `*.${name}`,
  `*.headers.${name}`,
  `*.*.${name}`,
]);

/**
 * A process's log: JSON lines on standard error, or to `destination`, `MOORING_LOG_LEVEL` (default `info`) and above. Their `time` is
 * ISO 8601, their `level` a word.
 */
export function createLog(
  component: string,
  level: Level = setting('MOORING_LOG_LEVEL') ?? 'info',
  destination: DestinationStream = pino.destination({ dest: 2, sync: true }),
): Logger {
  const formatters = { level: (label: string) => ({ level: label }) };
  return pino(
    { name: component, level, redact: SECRETS, formatters, timestamp: stdTimeFunctions.isoTime },
    destination,
  );
}
