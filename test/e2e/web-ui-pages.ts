/** How a person opens a page of the Web UI. */
import type { Browser, Frame, Page } from 'playwright-core';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { Scene } from './web-ui-scenes.ts';

const FIND_TIMEOUT_MS = 40_000;
/** Room for a workflow's id on one line, in pixels. */
const VIEWPORT = { width: 1600, height: 1150 };

/** Called for each tab that was looked at, by its name; `null` is the page as it opens. */
export type OnTab = (page: Page, tab: string | null) => Promise<void>;

/**
 * Opens a scene and looks for what must be there, on the page and on the tabs that it names. Returns what is missing.
 */
export async function viewScene(
  browser: Browser,
  webUiUrl: string,
  scene: Scene,
  onTab: OnTab = async () => {},
): Promise<string[]> {
  const page = await browser.newPage({ viewport: VIEWPORT });
  try {
    await page.goto(webUiUrl + scene.path, { waitUntil: 'domcontentloaded' });
    const missing = await lookFor(page, scene.finds);
    await onTab(page, null);
    for (const [tab, finds] of Object.entries(scene.tabs ?? {})) {
      await page.getByRole('tab', { name: tab }).click({ timeout: FIND_TIMEOUT_MS });
      missing.push(...(await lookFor(page, finds)).map((what) => `${tab}: ${what}`));
      await onTab(page, tab);
    }
    return missing;
  } finally {
    await page.close();
  }
}

async function lookFor(page: Page, finds: readonly (string | RegExp)[]): Promise<string[]> {
  let missing: string[] = [];
  await waitUntil(
    async () => {
      const text = (await Promise.all(page.frames().map(readFrame))).join(' ').replace(/\s+/g, ' ');
      missing = finds
        .filter((what) => (typeof what === 'string' ? !text.includes(what) : !what.test(text)))
        .map(String);
      return missing.length === 0;
    },
    '',
    FIND_TIMEOUT_MS,
    250,
  ).catch(() => {});
  return missing;
}

/** What is rendered in a frame: the Web UI shows each piece of Markdown in a frame of its own, which may go at any time. */
async function readFrame(frame: Frame): Promise<string> {
  const body = frame.locator('body');
  // biome-ignore lint/performance/useDomNodeTextContent: only what is rendered can be read by a person
  return body.innerText({ timeout: 5_000 }).catch(() => '');
}
