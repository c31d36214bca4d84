/** What docs/install.md has in /opt/downloads: made of what the registries have, where a user fetches releases. */
import { execFile } from 'node:child_process';
import { copyFile, mkdir, mkdtemp, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { buildProgram } from '../../packaging/build.ts';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { findClusterBinaries } from '../cluster/cluster-binaries.ts';
import { findNode } from '../support/find-node.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const NODE_MAJOR = 22;
const run = promisify(execFile);

/** Fills a folder with the archives that the page names. Throws what npm, tar, Go or the build says. */
export async function makeDownloads(folder: string, print: (message: string) => void): Promise<void> {
  await mkdir(folder, { recursive: true });
  const work = await mkdtemp(join(tmpdir(), 'mooring-downloads-'));
  try {
    print('Node, as its release is packed');
    const release = join(work, 'node-release');
    await mkdir(join(release, 'bin'), { recursive: true });
    await copyFile(await findNode(NODE_MAJOR), join(release, 'bin/node'));
    await run('npm', ['install', '--prefix', work, '--no-save', '--no-audit', '--no-fund', 'npm@10']);
    await mkdir(join(release, 'lib/node_modules'), { recursive: true });
    await run('cp', ['-a', join(work, 'node_modules/npm'), join(release, 'lib/node_modules/npm')]);
    for (const name of ['npm', 'npx'])
      await symlink(`../lib/node_modules/npm/bin/${name}-cli.js`, join(release, 'bin', name));
    await run('tar', ['-cJf', join(folder, 'node.tar.xz'), '-C', work, 'node-release'], {
      env: { ...process.env, XZ_OPT: '-0' },
    });

    print('Mooring, built and packed');
    const program = join(ROOT, 'dist/mooring');
    await buildProgram(program);
    const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', folder], { cwd: program });
    await run('mv', [join(folder, stdout.trim()), join(folder, 'mooring.tgz')]);

    const { server, sqlTool } = await findClusterBinaries(print);
    const temporal = join(work, 'temporal');
    await mkdir(temporal);
    await copyFile(server, join(temporal, 'temporal-server'));
    await copyFile(sqlTool, join(temporal, 'temporal-sql-tool'));
    await copyFile((await findTemporalBinary()).path, join(temporal, 'temporal'));
    const pack = (archive: string, ...names: string[]) =>
      run('tar', ['--use-compress-program', 'gzip -1', '-cf', join(folder, archive), '-C', temporal, ...names]);
    await pack('temporal-server.tar.gz', 'temporal-server', 'temporal-sql-tool');
    await pack('temporal-cli.tar.gz', 'temporal');
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
