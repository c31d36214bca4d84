/** The tables and lines that a soak's outcome is printed in. */
import { readFile, writeFile } from 'node:fs/promises';
import { colours } from '../../cli/format.ts';
import { table } from '../../cli/output.ts';
import type { SoakReport } from './soak.ts';

const MAX_PRINTED_VIOLATIONS = 40;

/** Prints a report for people. */
export function printReport(report: SoakReport, again: string): void {
  const rows = Object.entries(report.operations)
    .sort(([one], [other]) => one.localeCompare(other))
    .map(([kind, outcomes]) => [kind, String(total(outcomes)), describeCounts(outcomes)]);
  console.log(`\n${table(['operation', 'calls', 'outcomes'], rows)}`);
  console.log(
    `\n${table(
      ['fault', 'times'],
      Object.entries(report.faults)
        .sort()
        .map(([kind, count]) => [kind, String(count)]),
    )}`,
  );
  const { messages, delayed, duplicated, lost } = report.messages;
  console.log(`\nmessages: ${messages}, of them ${delayed} delayed, ${duplicated} duplicated, ${lost} lost`);
  console.log(`sagas: ${describeCounts(report.sagas)}`);
  console.log(
    report.restMs === null ? 'it never came to rest' : `at rest after ${(report.restMs / 1000).toFixed(1)} s`,
  );
  for (const { rule, instanceId, detail } of report.violations.slice(0, MAX_PRINTED_VIOLATIONS))
    console.log(`${colours.red('✗')} ${rule}: ${instanceId === null ? '' : `instance ${instanceId}: `}${detail}`);
  if (report.violations.length > MAX_PRINTED_VIOLATIONS)
    console.log(`… and ${report.violations.length - MAX_PRINTED_VIOLATIONS} more`);
  if (report.kept !== null) console.log(`data and logs are in ${report.kept}`);
  console.log(`\n${report.violations.length} violations; again with: ${again}`);
}

const HEAD = `# Runs of the chaos soak

Random operations on many instances while workers, APIs, sled agents, PostgreSQL and the Temporal server are killed with
SIGKILL and started again, sleds burn down and are expunged, guests halt and crash, sled agents refuse, migrations fail on
either side, and messages between the control plane and the sleds are delayed, duplicated, reordered and lost. Then everything
comes up and to rest, and is checked: every invariant by the doctor, the guests' own logs for one that ever executed in two
places, and the history of all calls. A run with violations found a fault, which was mended before the next line. Each line was
appended by \`npm run soak -- … --record docs/soak.md\`; the same seed gives the same plan.

| Seed | Minutes | Instances | Calls | Answers | Faults | Messages (delayed, duplicated, lost) | Rest after | Violations |
| ---- | ------- | --------- | ----- | ------- | ------ | ------------------------------------ | ---------- | ---------- |
`;

/** Appends a run to the table of runs in a Markdown file, which is made if it isn't there. */
export async function recordReport(file: string, report: SoakReport): Promise<void> {
  const before = await readFile(file, 'utf8').catch(() => HEAD);
  const byStatus: Record<string, number> = {};
  for (const outcomes of Object.values(report.operations))
    for (const [outcome, count] of Object.entries(outcomes)) byStatus[outcome] = (byStatus[outcome] ?? 0) + count;
  const { messages, delayed, duplicated, lost } = report.messages;
  const cells = [
    report.seed,
    report.durationMs / 60_000,
    report.instances,
    total(byStatus),
    describeCounts(byStatus),
    describeCounts(report.faults),
    `${messages} (${delayed}, ${duplicated}, ${lost})`,
    report.restMs === null ? 'never' : `${(report.restMs / 1000).toFixed(1)} s`,
    report.violations.length,
  ];
  await writeFile(file, `${before}| ${cells.join(' | ')} |\n`);
}

function total(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}

function describeCounts(counts: Readonly<Record<string, number>>): string {
  return Object.entries(counts)
    .sort(([one], [other]) => one.localeCompare(other))
    .map(([name, count]) => `${name}: ${count}`)
    .join(', ');
}
