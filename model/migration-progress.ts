/** How far a live migration is, and what is said of it. Without I/O. */
import { isTerminalMigrationState, type MigrationState } from './states.ts';

/** What a sled agent says of the guest's way. Sizes in bytes. */
export interface MigrationFigures {
  readonly bytesTotal: number;
  readonly bytesSent: number;
  readonly bytesLeft: number;
  /** How fast it goes now; over the whole time where only that is known; `null` where neither is. */
  readonly bytesPerSecond: number | null;
  /** How long the guest is expected to stand still, in milliseconds; `null` where the hypervisor doesn't say. */
  readonly expectedDowntimeMs: number | null;
  /** How long it stood still, in milliseconds; `null` until it is known. */
  readonly downtimeMs: number | null;
  readonly elapsedMs: number;
}

/** What the database says of a migration. */
export interface MigrationSides {
  readonly sourceState: MigrationState;
  readonly targetState: MigrationState;
  /** Its instance still names it: the update saga has not drawn the consequences. */
  readonly linked: boolean;
}

/** `unwatched`: nobody looked until its end. */
export const MIGRATION_OUTCOMES = ['under way', 'completed', 'failed', 'unwatched'] as const;
export type MigrationOutcome = (typeof MIGRATION_OUTCOMES)[number];

/** One look at a migration. */
export interface MigrationObservation {
  readonly outcome: MigrationOutcome;
  readonly instanceName: string;
  readonly sourceSledName: string;
  readonly sledName: string;
  readonly sourceState: MigrationState;
  readonly targetState: MigrationState;
  /** The newest that is known; `null` where no sled gives any, as simulated ones. */
  readonly figures: MigrationFigures | null;
}

/** What the stored states of a migration's sides come to: it is over when nothing more can change. */
export function migrationOutcome({ sourceState, targetState, linked }: MigrationSides): MigrationOutcome {
  if (linked && !(isTerminalMigrationState(sourceState) && isTerminalMigrationState(targetState))) return 'under way';
  return targetState === 'completed' ? 'completed' : 'failed';
}

/** How fast the guest's bytes go between two looks at one migration; over the whole time with one look. Per second. */
export function bytesPerSecond(
  now: { readonly bytesSent: number; readonly elapsedMs: number },
  before: { readonly bytesSent: number; readonly elapsedMs: number } | null,
): number | null {
  const since = before !== null && now.elapsedMs > before.elapsedMs ? before : { bytesSent: 0, elapsedMs: 0 };
  const seconds = (now.elapsedMs - since.elapsedMs) / 1000;
  return seconds > 0 ? Math.max(0, Math.round((now.bytesSent - since.bytesSent) / seconds)) : null;
}

/** Says in one line how far a migration is, or how it ended. */
export function describeMigration({ outcome, sourceState, targetState, figures }: MigrationObservation): string {
  const sides = `source ${words(sourceState)}, destination ${words(targetState)}`;
  if (figures === null) return `${outcome}: ${sides}`;
  const { bytesTotal, bytesSent, bytesLeft, expectedDowntimeMs, downtimeMs, elapsedMs } = figures;
  const speed = figures.bytesPerSecond === null ? null : `${size(figures.bytesPerSecond)}/s`;
  const stood = downtimeMs === null ? null : `the guest stood still for ${downtimeMs} ms`;
  const parts =
    outcome === 'under way'
      ? [
          `${size(bytesLeft)} of ${size(bytesTotal)} left`,
          speed,
          expectedDowntimeMs === null ? null : `expected downtime ${expectedDowntimeMs} ms`,
          stood,
          `${seconds(elapsedMs)} so far`,
        ]
      : [`${size(bytesSent)} sent in ${seconds(elapsedMs)}`, speed, outcome === 'failed' ? sides : null, stood];
  return `${outcome}: ${parts.filter((part) => part !== null).join(', ')}`;
}

/** The same in Markdown, with whom it is about. */
export function migrationDetails(observation: MigrationObservation): string {
  const { instanceName, sourceSledName, sledName, outcome, figures } = observation;
  const line = describeMigration(observation);
  return [
    `**${instanceName} · ${sourceSledName} → ${sledName}**`,
    '',
    `**${line.slice(0, outcome.length)}**${line.slice(outcome.length)}`,
    '',
    `- source: ${words(observation.sourceState)}`,
    `- destination: ${words(observation.targetState)}`,
    ...(figures === null ? ['- its sleds give no figures'] : figureLines(figures)),
  ].join('\n');
}

function figureLines(figures: MigrationFigures): string[] {
  const { bytesTotal, bytesSent, bytesLeft, expectedDowntimeMs, downtimeMs } = figures;
  const downtime =
    downtimeMs !== null ? `${downtimeMs} ms` : expectedDowntimeMs !== null ? `expected ${expectedDowntimeMs} ms` : null;
  return [
    `- bytes left: ${bytesLeft} (${size(bytesLeft)}); sent: ${size(bytesSent)}; in all: ${size(bytesTotal)}`,
    ...(figures.bytesPerSecond === null ? [] : [`- throughput: ${size(figures.bytesPerSecond)}/s`]),
    ...(downtime === null ? [] : [`- downtime of the guest: ${downtime}`]),
    `- time: ${seconds(figures.elapsedMs)}`,
  ];
}

function words(state: MigrationState): string {
  return state.replaceAll('_', ' ');
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log2(bytes) / 10));
  return power === 0 ? `${Math.round(bytes)} B` : `${(bytes / 1024 ** power).toFixed(1)} ${units[power]}`;
}
