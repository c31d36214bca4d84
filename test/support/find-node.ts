/** Node in other versions than the one that runs the tests. */
import { execFile } from 'node:child_process';
import { access, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDirectory } from '../../stack/temporal-binary.ts';

/** npm has Node's own builds, by platform. */
const PACKAGE = `node-${process.platform}-${process.arch}`;

/** A Node of a major version: kept from an earlier run, or fetched from the registry. Throws what npm says. */
export async function findNode(major: number): Promise<string> {
  const folder = join(cacheDirectory(), `node-${major}`);
  const program = join(folder, 'node_modules', PACKAGE, 'bin/node');
  const isThere = await access(program).then(
    () => true,
    () => false,
  );
  if (isThere) return program;
  await mkdir(folder, { recursive: true });
  const quiet = ['--no-save', '--no-audit', '--no-fund', '--prefix', folder];
  await promisify(execFile)('npm', ['install', ...quiet, `${PACKAGE}@${major}`]);
  return program;
}
