/** A real browser for the Web UI: Debian's chromium, driven by playwright-core. */
import { access, constants } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { type Browser, chromium } from 'playwright-core';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'];

/** The browser to use: what `MOORING_CHROMIUM` names, or one on PATH; `null` when there is none. */
export async function findChromium(env: NodeJS.ProcessEnv = process.env): Promise<string | null> {
  const named = env.MOORING_CHROMIUM;
  const candidates = named
    ? [named]
    : (env.PATH ?? '').split(delimiter).flatMap((folder) => NAMES.map((name) => join(folder, name)));
  for (const path of candidates) {
    const runs = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (runs) return path;
  }
  return null;
}

/** The message where there is none. */
export const NO_CHROMIUM =
  'there is no chromium: install it (apt-get install chromium), or name one with MOORING_CHROMIUM';

/** Starts the browser. As root it has no sandbox of its own. */
export function openBrowser(executablePath: string): Promise<Browser> {
  return chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] });
}
