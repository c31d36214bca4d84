/** `npm test`: types, lint and format, the arrows between the rooms, then every test; ends with a line that counts. */
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { buildProgram } from '../packaging/build.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const filters = process.argv.slice(2);

async function run(command: string, args: string[]): Promise<boolean> {
  console.log(`\n> ${command} ${args.join(' ')}`);
  return new Promise((resolve, reject) => {
    const child = spawn(join(root, 'node_modules', '.bin', command), args, { cwd: root, stdio: 'inherit' });
    child.once('error', reject);
    child.once('exit', (code) => resolve(code === 0));
  });
}

const report = z.object({
  numPassedTests: z.number(),
  numFailedTests: z.number(),
  numPendingTests: z.number(),
  success: z.boolean(),
});

const folder = await mkdtemp(join(tmpdir(), 'mooring-test-'));
// In the working tree, where the program finds what it depends on.
await mkdir(join(root, '.mooring'), { recursive: true });
const program = await mkdtemp(join(root, '.mooring', 'test-program-'));
try {
  const checking = Promise.all([
    run('tsc', []),
    run('tsc', ['--project', 'console']),
    run('biome', ['check', '.']),
    run('depcruise', ['.']),
  ]);
  console.log('\n> the program, built');
  const [checks] = await Promise.all([checking, buildProgram(program)]);
  process.env.MOORING_TEST_PROGRAM = program;
  const outputFile = join(folder, 'report.json');
  const tested = await run('vitest', [
    'run',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${outputFile}`,
    ...filters,
  ]);
  const counted = report.parse(JSON.parse(await readFile(outputFile, 'utf8')));
  const failedChecks = checks.filter((good) => !good).length;
  // A suite that could not be loaded has no failed test of its own.
  const failed = counted.numFailedTests + failedChecks + (tested || counted.numFailedTests > 0 ? 0 : 1);
  if (counted.numPendingTests > 0)
    console.log(
      `\nSKIPPED: ${counted.numPendingTests} tests, for what this machine lacks: the lines above that begin so say what`,
    );
  console.log(`\n${counted.numPassedTests + checks.length - failedChecks} passed, ${failed} failed`);
  process.exitCode = failed === 0 && counted.numPassedTests > 0 ? 0 : 1;
} finally {
  for (const made of [folder, program]) await rm(made, { recursive: true, force: true });
}
