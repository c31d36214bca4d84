/** Which build of the workflows a worker runs: what Temporal tells its versions apart by. */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { realpath } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { readBuildInfo, readPackageVersion } from '../platform/host/build-info.ts';
import { setting } from '../platform/settings.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
/** What the workflows are made of: a change elsewhere can't change how a history replays. */
const WORKFLOW_CODE = ['workflows', 'model', 'package-lock.json'];

/**
 * The build id: `MOORING_BUILD_ID` where it is set, else what the build has noted; where the program was not built, the package's
 * version and the git commit, with a hash of the workflow code where it differs from the commit's or there is no repository of ours.
 */
export async function readBuildId(env: NodeJS.ProcessEnv, workflowCode: string): Promise<string> {
  const named = setting('MOORING_BUILD_ID', env);
  if (named !== undefined) return named;
  return readBuildInfo()?.build_id ?? makeBuildId(workflowCode);
}

/** The build id of the working tree that this module is in. */
export async function makeBuildId(workflowCode: string): Promise<string> {
  const version = readPackageVersion();
  // Without its map, which says where the sources lie on this machine.
  const code = workflowCode.replace(/^\/\/# sourceMappingURL=.*$/gm, '');
  const digest = createHash('sha256').update(code).digest('hex').slice(0, 8);
  try {
    const top = await git('rev-parse', '--show-toplevel');
    // As a dependency inside somebody's repository, the commit would be that repository's.
    if ((await realpath(top)) !== (await realpath(ROOT))) return `${version}-${digest}`;
    const commit = await git('rev-parse', '--short=12', 'HEAD');
    const changed = await git('status', '--porcelain', '--', ...WORKFLOW_CODE);
    return changed === '' ? `${version}-${commit}` : `${version}-${commit}-${digest}`;
  } catch {
    return `${version}-${digest}`;
  }
}

async function git(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('git', ['-C', ROOT, ...args], { timeout: 5_000 });
  return stdout.trim();
}
