/** The programs of a Temporal cluster, built from their source by Go: `go install` reaches nothing but Go's module proxy. */
import { execFile } from 'node:child_process';
import { access, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDirectory } from '../../stack/temporal-binary.ts';

/** The version of Temporal Server that the cluster runs. */
export const SERVER_VERSION = '1.32.1';
/** How long the build may take, in milliseconds: some seven minutes on two cores. */
const BUILD_MS = 40 * 60_000;

export interface ClusterBinaries {
  /** `temporal-server`: each of its services is a process of it. */
  readonly server: string;
  /** `temporal-sql-tool`: makes the schemas. */
  readonly sqlTool: string;
}

/**
 * Finds the programs in the folder that `MOORING_TEST_TEMPORAL_SERVER` names, or in the cache, or builds them where Go is. Throws,
 * with what to do, where neither is to be had.
 */
export async function findClusterBinaries(print: (message: string) => void): Promise<ClusterBinaries> {
  const { MOORING_TEST_TEMPORAL_SERVER: named } = process.env;
  const folder =
    named || join(cacheDirectory(), `temporal-server-${SERVER_VERSION}-${process.platform}-${process.arch}`);
  const binaries = { server: join(folder, 'server'), sqlTool: join(folder, 'sql') };
  if (await areThere(binaries)) return binaries;
  if (named) throw new Error(`MOORING_TEST_TEMPORAL_SERVER: ${folder} has not got both "server" and "sql"`);
  print(`building Temporal Server ${SERVER_VERSION} into ${folder}: this takes some minutes, once`);
  await mkdir(folder, { recursive: true });
  const modules = ['cmd/server', 'cmd/tools/sql'].map((path) => `go.temporal.io/server/${path}@v${SERVER_VERSION}`);
  for (const module of modules) {
    await promisify(execFile)('go', ['install', module], {
      env: { ...process.env, GOBIN: folder, GOFLAGS: '-p=2' },
      timeout: BUILD_MS,
      maxBuffer: 64 * 1024 ** 2,
    }).catch((error: NodeJS.ErrnoException & { stderr?: string }) => {
      if (error.code === 'ENOENT')
        throw new Error(
          'a Temporal cluster is built from its source, and Go is not here: install Go 1.25 or later (https://go.dev/dl), or name a folder with its programs "server" and "sql" in MOORING_TEST_TEMPORAL_SERVER',
        );
      throw new Error(`${module} can't be built: ${error.stderr?.trim().split('\n').at(-1) ?? error.message}`);
    });
  }
  return binaries;
}

async function areThere(binaries: ClusterBinaries): Promise<boolean> {
  const found = await Promise.allSettled(Object.values(binaries).map((path: string) => access(path)));
  return found.every(({ status }) => status === 'fulfilled');
}
