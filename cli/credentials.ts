/**
 * Which API a command calls, and by which token. `mooring login` keeps both in one file that its user alone may read, in
 * `$XDG_CONFIG_HOME/mooring` (by default `~/.config/mooring`: https://specifications.freedesktop.org/basedir-spec/latest/);
 * the token of a stack that runs on this machine is found through its stack file.
 */
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { z } from 'zod';
import { writePrivateFile } from '../platform/host/private-file.ts';
import { setting } from '../platform/settings.ts';
import { readStackFile } from '../stack/stack-file.ts';

const credentials = z.object({
  /** The API of the last login. */
  current: z.string().nullable(),
  tokens: z.record(z.string(), z.string()),
});
type Credentials = z.infer<typeof credentials>;

/** The file that `mooring login` writes. */
export function credentialsFile(env: NodeJS.ProcessEnv = process.env): string {
  const config = env.XDG_CONFIG_HOME;
  const folder = config !== undefined && isAbsolute(config) ? config : join(homedir(), '.config');
  return join(folder, 'mooring', 'credentials.json');
}

/** The API of the last login; `null` when there was none. */
export function currentApiUrl(env: NodeJS.ProcessEnv = process.env): string | null {
  try {
    return credentials.parse(JSON.parse(readFileSync(credentialsFile(env), 'utf8'))).current;
  } catch {
    return null;
  }
}

/** The token for an API: `MOORING_TOKEN`, or what a login left, or the one of a stack on this machine; else `undefined`. */
export async function tokenFor(apiUrl: string, env: NodeJS.ProcessEnv = process.env): Promise<string | undefined> {
  const named = setting('MOORING_TOKEN', env);
  if (named) return named;
  const saved = (await read(env)).tokens[originOf(apiUrl)];
  if (saved !== undefined) return saved;
  const stack = URL.canParse(apiUrl) ? await readStackFile(apiUrl, env) : null;
  if (stack === null) return undefined;
  return (await readFile(stack.token_file, 'utf8').catch(() => '')).trim() || undefined;
}

/** Keeps a token for an API, which becomes the one that commands call. Throws what the file system reports. */
export async function saveLogin(apiUrl: string, token: string, env: NodeJS.ProcessEnv = process.env): Promise<void> {
  const { tokens } = await read(env);
  await write({ current: apiUrl.replace(/\/+$/, ''), tokens: { ...tokens, [originOf(apiUrl)]: token } }, env);
}

/** Forgets the token for an API. Returns whether there was one. */
export async function forgetLogin(apiUrl: string, env: NodeJS.ProcessEnv = process.env): Promise<boolean> {
  const { current, tokens } = await read(env);
  const { [originOf(apiUrl)]: known, ...others } = tokens;
  const same = current !== null && originOf(current) === originOf(apiUrl);
  if (known !== undefined || same) await write({ current: same ? null : current, tokens: others }, env);
  return known !== undefined;
}

function originOf(apiUrl: string): string {
  return URL.canParse(apiUrl) ? new URL(apiUrl).origin : apiUrl;
}

async function read(env: NodeJS.ProcessEnv): Promise<Credentials> {
  try {
    return credentials.parse(JSON.parse(await readFile(credentialsFile(env), 'utf8')));
  } catch {
    return { current: null, tokens: {} };
  }
}

async function write(value: Credentials, env: NodeJS.ProcessEnv): Promise<void> {
  await writePrivateFile(credentialsFile(env), `${JSON.stringify(value, null, 2)}\n`);
}
