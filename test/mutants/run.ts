/**
 * `npm run mutants`: sabotages a copy of the tree in one place at a time, and shows that a test catches each. Ends with 1 if
 * one survives. With `--check` it only looks whether every sabotage still has its place.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { colours } from '../../cli/format.ts';
import { printJson, table } from '../../cli/output.ts';
import { copyTree, ROOT } from '../support/tree-copy.ts';
import { applyEdit, type Edit, MUTANTS, type Mutant } from './mutants.ts';

/** A mutant that makes its tests hang is caught as well, in milliseconds. */
const TEST_TIMEOUT_MS = 300_000;
const QUICKEST_FIRST = ['test/rules/', 'test/sled-agent/', 'test/database/', 'test/sagas/'];

interface Verdict {
  readonly mutant: Mutant;
  /** The test file that failed; `null`: it survived. */
  readonly caughtBy: string | null;
  readonly seconds: number;
}

/** The files of a mutant as they are, and as it makes them. Throws a `StaleMutant`. */
async function sabotaged(folder: string, mutant: Mutant): Promise<Map<string, { before: string; after: string }>> {
  const files = new Map<string, { before: string; after: string }>();
  const textOf = async (edit: Edit) => {
    const known = files.get(edit.file);
    if (known !== undefined) return known;
    const before = await readFile(join(folder, edit.file), 'utf8');
    return { before, after: before };
  };
  for (const edit of mutant.edits) {
    const { before, after } = await textOf(edit);
    files.set(edit.file, { before, after: applyEdit(after, edit, mutant.name) });
  }
  return files;
}

/** Whether a test file passes in a folder. */
async function passes(folder: string, testFile: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn(join(folder, 'node_modules', '.bin', 'vitest'), ['run', '--bail=1', testFile], {
      cwd: folder,
      stdio: 'ignore',
      detached: true,
    });
    const hard = setTimeout(() => child.pid !== undefined && process.kill(-child.pid, 'SIGKILL'), TEST_TIMEOUT_MS);
    child.once('error', reject);
    child.once('exit', (code) => {
      clearTimeout(hard);
      resolve(code === 0);
    });
  });
}

async function judge(folder: string, mutant: Mutant): Promise<Verdict> {
  const began = performance.now();
  const files = await sabotaged(folder, mutant);
  try {
    for (const [file, { after }] of files) await writeFile(join(folder, file), after);
    let caughtBy: string | null = null;
    for (const testFile of mutant.caughtBy) {
      if (await passes(folder, testFile)) continue;
      caughtBy = testFile;
      break;
    }
    return { mutant, caughtBy, seconds: (performance.now() - began) / 1000 };
  } finally {
    for (const [file, { before }] of files) await writeFile(join(folder, file), before);
  }
}

/** What a table of verdicts that was recorded before says, by the sabotage's name. */
async function recorded(file: string): Promise<Map<string, string>> {
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const rows = text.split('\n').map((line) => line.split(' | ').map((cell) => cell.replace(/^\| | \|$/g, '')));
  return new Map(rows.filter((cells) => cells.length === 4).map((cells) => [cells[0] ?? '', cells[3] ?? '']));
}

/** Writes the table: the newest verdict on each sabotage, from this run or an earlier one. */
async function record(file: string, verdicts: readonly Verdict[]): Promise<void> {
  const verdictCells = await recorded(file);
  for (const { mutant, caughtBy } of verdicts)
    verdictCells.set(mutant.name, caughtBy === null ? '**survives**' : `\`${caughtBy}\``);
  const verdictOn = ({ name }: Mutant) => verdictCells.get(name) ?? 'not run yet';
  const caught = MUTANTS.filter((mutant) => verdictOn(mutant).startsWith('`')).length;
  const lines = [
    '# Sabotages that the tests catch',
    '',
    'Each line is a small sabotage of the product, made alone in a copy of the tree, and the test file that failed because of',
    'it. Where PostgreSQL’s own rules are a second line of defence, the sabotage stands twice: alone, and with that rule gone.',
    'Made by `npm run mutants -- --record docs/mutants.md`; with `--only` it renews the lines that it ran.',
    '',
    `${caught} of ${MUTANTS.length} are caught.`,
    '',
    '| Sabotage | What would go wrong | In | Caught by |',
    '| -------- | ------------------- | -- | --------- |',
    ...MUTANTS.map((mutant) => {
      const files = [...new Set(mutant.edits.map((edit) => `\`${edit.file}\``))].join(', ');
      return `| ${mutant.name} | ${mutant.why} | ${files} | ${verdictOn(mutant)} |`;
    }),
    '',
  ];
  await writeFile(file, lines.join('\n'));
}

const program = new Command('mutants')
  .description('Sabotages a copy of the tree in one place at a time, and shows that a test catches each.')
  .option('--only <text>', 'only those whose name contains this text')
  .option('--check', 'only look whether every sabotage still has its place')
  .option('--record <file>', 'write the verdicts into the table of this file')
  .option('--json', 'print the verdicts as JSON')
  .action(async (options: { only?: string; check?: boolean; record?: string; json?: boolean }) => {
    // Those of a quick test first.
    const rank = ({ caughtBy }: Mutant) => QUICKEST_FIRST.findIndex((folder) => caughtBy[0]?.startsWith(folder));
    const chosen = MUTANTS.filter((mutant) => mutant.name.includes(options.only ?? '')).sort(
      (one, other) => rank(one) - rank(other),
    );
    if (chosen.length === 0) throw new Error(`no mutant has "${options.only}" in its name`);
    const folder = options.check ? ROOT : await mkdtemp(join(tmpdir(), 'mooring-mutants-'));
    if (!options.check) await copyTree(folder);
    try {
      for (const mutant of chosen) await sabotaged(folder, mutant);
      if (options.check) {
        if (!options.json) console.log(`${chosen.length} mutants have their place`);
        return;
      }
      const sound = new Set<string>();
      const verdicts: Verdict[] = [];
      for (const mutant of chosen) {
        for (const testFile of mutant.caughtBy) {
          if (sound.has(testFile)) continue;
          if (!(await passes(folder, testFile)))
            throw new Error(`${testFile} fails without any sabotage: mend that first`);
          sound.add(testFile);
        }
        const verdict = await judge(folder, mutant);
        verdicts.push(verdict);
        // After each: a run that is broken off has recorded what it knows.
        if (options.record !== undefined) await record(options.record, verdicts);
        const mark = verdict.caughtBy === null ? colours.red('survives') : colours.green('caught');
        if (!options.json) console.log(`${mark}  ${mutant.name}  ${verdict.seconds.toFixed(0)} s`);
      }
      const survivors = verdicts.filter((verdict) => verdict.caughtBy === null);
      if (options.json)
        printJson(
          verdicts.map(({ mutant, caughtBy, seconds }) => ({ name: mutant.name, caught_by: caughtBy, seconds })),
        );
      else {
        const rows = verdicts.map(({ mutant, caughtBy }) => [mutant.name, caughtBy ?? colours.red('survives')]);
        console.log(`\n${table(['sabotage', 'caught by'], rows)}`);
        console.log(`\n${verdicts.length - survivors.length} of ${verdicts.length} are caught`);
      }
      process.exitCode = survivors.length === 0 ? 0 : 1;
    } finally {
      if (!options.check) await rm(folder, { recursive: true, force: true });
    }
  });

try {
  await program.parseAsync();
} catch (error) {
  console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
