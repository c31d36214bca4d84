/** Schemathesis, a fuzzer of OpenAPI documents, in a Python environment of its own: https://schemathesis.readthedocs.io */
import { execFile } from 'node:child_process';
import { access, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDirectory } from '../../stack/temporal-binary.ts';

const run = promisify(execFile);

const VERSION = '4.32.5';
/** How long pip may take to install it, in milliseconds. */
const INSTALL_MS = 240_000;

/** Finds the program in the cache, or installs it there. Returns `null`, having printed why, where Python can't have it. */
export async function findSchemathesis(what: string): Promise<string | null> {
  const folder = join(cacheDirectory(), `schemathesis-${VERSION}`);
  const program = join(folder, 'bin', 'schemathesis');
  if (
    await access(program).then(
      () => true,
      () => false,
    )
  )
    return program;
  // Two that install it at once don't see each other's half. A virtual environment can't be moved: its scripts name it.
  const lock = `${folder}.lock`;
  try {
    await mkdir(cacheDirectory(), { recursive: true });
    await mkdir(lock);
  } catch {
    console.warn(`SKIPPED: ${what}: another process installs schemathesis just now (or left ${lock} behind)`);
    return null;
  }
  try {
    await run('python3', ['-m', 'venv', folder], { timeout: INSTALL_MS });
    await run(join(folder, 'bin', 'python'), ['-m', 'pip', 'install', '--quiet', `schemathesis==${VERSION}`], {
      timeout: INSTALL_MS,
    });
    return program;
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    const { stderr, message } = error as { stderr?: string; message: string };
    const why = (stderr || message).trim().split('\n').at(-1);
    console.warn(`SKIPPED: ${what}: Python can't have schemathesis: ${why}`);
    return null;
  } finally {
    await rm(lock, { recursive: true, force: true });
  }
}
