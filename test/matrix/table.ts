/** The fault matrix as a table: for a terminal, and for docs/. */
import Table from 'cli-table3';
import { colours } from '../../cli/format.ts';
import type { CellResult, MatrixResult, Verdict } from './run-matrix.ts';

function find(result: MatrixResult, row: MatrixResult['rows'][number], column: MatrixResult['columns'][number]) {
  return result.cells.find((cell) => cell.row === row && cell.column === column);
}

function short(verdict: Verdict | undefined): string {
  switch (verdict?.kind) {
    case undefined:
      return '?';
    case 'holds':
      return verdict.outcome;
    case 'not applicable':
      return 'n/a';
    case 'broken':
      return 'BROKEN';
  }
}

function place({ row, column }: CellResult): string {
  return `${row.scenario.workflow}.${row.activity} × ${column.head}`;
}

/** What is wrong, a line each; none when all is well. */
export function brokenLines(result: MatrixResult): string[] {
  return [
    ...result.problems,
    ...result.cells.flatMap((cell) =>
      cell.verdict.kind === 'broken' ? [`${place(cell)}: ${cell.verdict.reason}`] : [],
    ),
  ];
}

/** One line that counts. */
export function summary({ cells, rows, columns, problems }: MatrixResult): string {
  const count = (kind: Verdict['kind']) => cells.filter(({ verdict }) => verdict.kind === kind).length;
  return `${rows.length} steps × ${columns.length} faults: ${count('holds')} hold, ${count('not applicable')} can't apply, ${count('broken')} broken${problems.length > 0 ? `, ${problems.length} other problems` : ''}`;
}

/** Rows are faults here, since a terminal is narrow and the steps are shorter than the faults. */
export function terminalTable(result: MatrixResult): string {
  const paint = (verdict: Verdict | undefined) => {
    const text = short(verdict);
    return verdict?.kind === 'broken'
      ? colours.red(text)
      : verdict?.kind === 'holds'
        ? colours.green(text)
        : colours.dim(text);
  };
  return [...new Set(result.rows.map(({ scenario }) => scenario.workflow))]
    .map((workflow) => {
      const rows = result.rows.filter(({ scenario }) => scenario.workflow === workflow);
      const table = new Table({
        head: [workflow, ...rows.map(({ activity }) => activity)],
        style: { head: [], border: [], compact: true },
      });
      for (const column of result.columns)
        table.push([column.head, ...rows.map((row) => paint(find(result, row, column)?.verdict))]);
      return table.toString();
    })
    .join('\n\n');
}

/** The page in docs/. */
export function markdown(result: MatrixResult): string {
  const { rows, columns, cells } = result;
  const reasons = [
    ...new Set(cells.flatMap(({ verdict }) => (verdict.kind === 'not applicable' ? [verdict.reason] : []))),
  ];
  const mark = (verdict: Verdict | undefined) =>
    verdict?.kind === 'not applicable' ? `n/a ${reasons.indexOf(verdict.reason) + 1}` : short(verdict);
  const broken = brokenLines(result);
  return [
    '# The fault matrix',
    '',
    'Made by `npm run matrix`: every step and every compensation of every workflow, under every fault, on a real stack.',
    '',
    `${summary(result)}.`,
    '',
    'A cell holds when the call had the right result, the instance showed the right state and held nothing of a failed attempt',
    'the moment the call returned, the very next operation succeeded, the instance could be stopped and deleted, and the doctor',
    'found nothing wrong, neither while it ran nor at rest: above all, no guest ever ran twice at a time. `done`: the operation',
    'succeeded; `undone`: it failed and was undone.',
    '',
    `| Step | ${columns.map(({ head }) => head).join(' | ')} |`,
    `|---|${columns.map(() => '---').join('|')}|`,
    ...rows.map((row) => {
      const verdicts = columns.map((column) => mark(find(result, row, column)?.verdict));
      return `| ${row.scenario.workflow} **${row.activity}** | ${verdicts.join(' | ')} |`;
    }),
    '',
    ...(broken.length === 0 ? [] : ['## Broken', '', ...broken.map((line) => `- ${line}`), '']),
    '## The faults',
    '',
    ...columns.map(({ head, title }) => `- **${head}**: ${title}.`),
    '',
    '## Where a fault cannot apply',
    '',
    ...reasons.map((reason, index) => `${index + 1}. ${reason}`),
    '',
    '## How each step is reached',
    '',
    ...rows.map(
      ({ scenario, activity, title, isCompensation }) =>
        `- ${scenario.workflow} **${activity}** (${isCompensation ? 'compensation: ' : ''}${title}): ${scenario.name}`,
    ),
    '',
  ].join('\n');
}
