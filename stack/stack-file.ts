/**
 * The stack file: how a command on the same machine finds the parts of a running stack. One JSON file a stack, readable
 * by its owner alone since it holds the database's password, named for the port of the API, in `$XDG_STATE_HOME/mooring`
 * (by default `~/.local/state/mooring`: https://specifications.freedesktop.org/basedir-spec/latest/).
 */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { z } from 'zod';
import { processExists } from '../platform/host/child-process.ts';
import { isLoopback } from '../platform/host/loopback.ts';
import { writePrivateFile } from '../platform/host/private-file.ts';

const stackFile = z.object({
  api_url: z.url(),
  database_url: z.string().min(1),
  temporal_address: z.string().min(1),
  temporal_namespace: z.string().min(1),
  /** Where the stack's own admin token is. */
  token_file: z.string().min(1),
  /** The folder of the authority that its sleds have joined; absent where they speak plain HTTP. */
  authority_dir: z.string().optional(),
  /** The process that runs the stack: a file whose process is gone is stale. */
  pid: z.number().int().positive(),
});
/** The content of a stack file. */
export type StackFile = z.infer<typeof stackFile>;

const FILE_NAME = /^stack-\d+\.json$/;

/** The folder of the stack files. */
export function stackFileFolder(env: NodeJS.ProcessEnv = process.env): string {
  const state = env.XDG_STATE_HOME;
  // The specification says that a relative path is to be ignored.
  return join(state !== undefined && isAbsolute(state) ? state : join(homedir(), '.local', 'state'), 'mooring');
}

function pathFor(apiUrl: string, env: NodeJS.ProcessEnv): string {
  const url = new URL(apiUrl);
  return join(stackFileFolder(env), `stack-${url.port || (url.protocol === 'https:' ? '443' : '80')}.json`);
}

/**
 * Writes a stack's file, and removes the files of stacks that were killed. Throws what the file system reports. Returns
 * a function that removes the file again, unless another stack has written it since.
 */
export async function writeStackFile(
  stack: Omit<StackFile, 'pid'>,
  env: NodeJS.ProcessEnv = process.env,
): Promise<() => Promise<void>> {
  const folder = stackFileFolder(env);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await removeStale(folder);
  const file = pathFor(stack.api_url, env);
  await writePrivateFile(file, `${JSON.stringify({ ...stack, pid: process.pid }, null, 2)}\n`);
  return async () => {
    if ((await read(file))?.pid === process.pid) await rm(file, { force: true });
  };
}

/** Reads the file of the stack whose API is at `apiUrl`; `null` when no running stack of this machine has that port. */
export async function readStackFile(apiUrl: string, env: NodeJS.ProcessEnv = process.env): Promise<StackFile | null> {
  if (!isLoopback(new URL(apiUrl).hostname)) return null;
  const found = await read(pathFor(apiUrl, env));
  return found !== null && processExists(found.pid) ? found : null;
}

/** The content of a file; `null` for one that is missing, or that no stack has written. */
async function read(file: string): Promise<StackFile | null> {
  try {
    return stackFile.parse(JSON.parse(await readFile(file, 'utf8')));
  } catch {
    return null;
  }
}

async function removeStale(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!FILE_NAME.test(name)) continue;
    const found = await read(join(folder, name));
    if (found !== null && !processExists(found.pid)) await rm(join(folder, name), { force: true });
  }
}
