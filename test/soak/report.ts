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
  const faults = Object.entries(report.consequences)
    .sort(([one], [other]) => one.localeCompare(other))
    .map(([kind, came]) => [kind, String(report.faults[kind] ?? 0), describeCounts(came)]);
  console.log(`\n${table(['fault or word', 'times', 'what came of it'], faults)}`);
  const { messages, delayed, duplicated, lost, usurped } = report.messages;
  console.log(
    `\nmessages: ${messages}, of them ${delayed} delayed, ${duplicated} duplicated, ${lost} lost, ${usurped} answered by somebody else`,
  );
  console.log(`happened: ${describeCounts(report.happenings)}`);
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
SIGKILL and started again; PostgreSQL is frozen; search attributes vanish; new builds take the workers' place and are promoted
later; sleds are frozen, cut off, without power, out of disk, or off by days on their clock; operators declare them dead,
expunge them and stop instances by force, sometimes of a sled that is on; sleds are drained; guests halt and crash, sled agents
refuse, migrations fail on either side; and messages between the control plane and the sleds are delayed, duplicated,
reordered, lost, and answered by somebody else. Some sleds have leases, some keep their records, some keep nothing; some
instances are started again by themselves. Then everything comes up and to rest, and is checked: every invariant by the doctor,
the guests' own logs for one that ever executed in two places, what runs on sleds that were expunged, and the history of all
calls. A run with violations found a fault, which was mended before the next line. Each line was appended by
\`npm run soak -- … --record docs/soak.md\`; the same seed gives the same plan.

| Seed | Minutes | Instances | Calls | Answers | Faults and words (what came of them) | Messages (delayed, duplicated, lost, usurped) | Happened | Rest after | Violations |
| ---- | ------- | --------- | ----- | ------- | ------------------------------------ | --------------------------------------------- | -------- | ---------- | ---------- |
`;

/** Appends a run to the table of runs in a Markdown file, which is made if it isn't there. */
export async function recordReport(file: string, report: SoakReport): Promise<void> {
  const before = await readFile(file, 'utf8').catch(() => HEAD);
  const byStatus: Record<string, number> = {};
  for (const outcomes of Object.values(report.operations))
    for (const [outcome, count] of Object.entries(outcomes)) byStatus[outcome] = (byStatus[outcome] ?? 0) + count;
  const { messages, delayed, duplicated, lost, usurped } = report.messages;
  const cells = [
    report.seed,
    report.durationMs / 60_000,
    report.instances,
    total(byStatus),
    describeCounts(byStatus),
    describeFaults(report),
    `${messages} (${delayed}, ${duplicated}, ${lost}, ${usurped})`,
    describeCounts(report.happenings),
    report.restMs === null ? 'never' : `${(report.restMs / 1000).toFixed(1)} s`,
    report.violations.length,
  ];
  await writeFile(file, `${before}| ${cells.join(' | ')} |\n`);
}

/** Each fault with its number, and what came of it where that is more than that it was. */
function describeFaults({ faults, consequences }: SoakReport): string {
  return Object.entries(faults)
    .sort(([one], [other]) => one.localeCompare(other))
    .map(([name, count]) => {
      const { done: _, 'nobody there': __, ...came } = consequences[name] ?? {};
      return Object.keys(came).length === 0 ? `${name}: ${count}` : `${name}: ${count} (${describeCounts(came)})`;
    })
    .join(', ');
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
