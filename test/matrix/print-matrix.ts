/** `npm run matrix [-- --row TEXT --column TEXT]`: runs the fault matrix; the whole one is written to docs/fault-matrix.md. */
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { colours } from '../../cli/format.ts';
import { COLUMNS } from './columns.ts';
import { runMatrix } from './run-matrix.ts';
import { brokenLines, markdown, summary, terminalTable } from './table.ts';

const { values } = parseArgs({ options: { row: { type: 'string' }, column: { type: 'string' } } });
// The servers' processes don't hold this one open, and their end is waited for.
setInterval(() => {}, 60_000);
const began = performance.now();
const seconds = () => `${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s`;
const result = await runMatrix({
  row: values.row,
  columns: COLUMNS.filter(({ head }) => head.includes(values.column ?? '')),
  onPhase: (phase) => console.error(`${seconds()}  ${phase}`),
  onCell: ({ row, column, verdict }) => {
    if (verdict.kind === 'broken')
      console.error(
        `${seconds()}  ${colours.red('broken')}  ${row.scenario.workflow}.${row.activity} × ${column.head}: ${verdict.reason}`,
      );
  },
});
console.log(terminalTable(result));
for (const line of brokenLines(result)) console.log(colours.red(line));
console.log(`${summary(result)} (${seconds().trim()})`);
if (values.row === undefined && values.column === undefined) {
  const folder = fileURLToPath(new URL('../../docs/', import.meta.url));
  await mkdir(folder, { recursive: true });
  await writeFile(`${folder}fault-matrix.md`, markdown(result));
}
process.exit(brokenLines(result).length > 0 ? 1 : 0);
