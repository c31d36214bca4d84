/** The console as a person has it: in a real browser, as it was built, with all that the browser objects to on record. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { buildConsole } from '../../packaging/build.ts';
import { ROOT } from '../support/tree-copy.ts';

/** The console's folder: of the program that was built for all tests, or built now. `remove` takes the latter away. */
export async function builtConsole(): Promise<{ folder: string; remove: () => Promise<void> }> {
  const program = process.env.MOORING_TEST_PROGRAM;
  if (program) return { folder: join(program, 'console'), remove: async () => {} };
  await mkdir(join(ROOT, '.mooring'), { recursive: true });
  const folder = await mkdtemp(join(ROOT, '.mooring', 'console-'));
  await buildConsole(folder);
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) };
}

/** A page that is looked at. */
export interface Looked {
  readonly page: Page;
  /** What the browser refused, what threw, and what was asked of another host. Answers that are refusals are no such thing. */
  readonly objections: string[];
  close(): Promise<void>;
}

/** Opens the console at a hash. `token`: one that is kept for the session already. */
export async function look(
  browser: Browser,
  url: string,
  { hash = '#/', token, ...options }: { hash?: string; token?: string } & BrowserContextOptions = {},
): Promise<Looked> {
  // What flies can't be caught: a test drags tiles that stand still.
  const context = await browser.newContext({
    viewport: { width: 1280, height: 900 },
    reducedMotion: 'reduce',
    ...options,
  });
  const objections: string[] = [];
  if (token !== undefined)
    await context.addInitScript(`sessionStorage.setItem('mooring-token', ${JSON.stringify(token)})`);
  const page = await context.newPage();
  page.on('pageerror', (error) => objections.push(`threw: ${error.message}`));
  page.on('dialog', (dialog) => objections.push(`a dialog: ${dialog.message()}`));
  page.on('console', (message) => {
    // A status that is a refusal is told on the page; the browser writes it down as well.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
      objections.push(message.text());
  });
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) objections.push(`asks ${request.url()}`);
  });
  await page.goto(`${url}/${hash}`);
  return { page, objections, close: () => context.close() };
}

/** What a person sees of the fleet: by the name of each instance its state, in a word, and where its tile is. */
export function seenFleet(page: Page): Promise<Record<string, string>> {
  return page
    .locator('.column')
    .evaluateAll((columns) =>
      Object.fromEntries(
        columns.flatMap((column) =>
          [...column.querySelectorAll('.tile:not(.is-arriving)')].map((tile) => [
            tile.querySelector('.tile-name')?.textContent ?? '',
            `${tile.querySelector('.state')?.textContent?.trim().split(' ').at(-1)} ${column.getAttribute('aria-label')}`,
          ]),
        ),
      ),
    );
}
