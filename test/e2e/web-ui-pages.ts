/** How a person opens a page of the Web UI. */
import type { Browser, Page } from 'playwright-core';
import { waitUntil } from '../../worker/child-process.ts';
import type { Scene } from './web-ui-scenes.ts';

export interface Viewed {
  readonly page: Page;
  /** What the scene says must be found, and isn't. */
  readonly missing: readonly string[];
}

const FIND_TIMEOUT_MS = 60_000;

/** Opens a scene and looks for what must be there. The caller closes the page. */
export async function showScene(browser: Browser, webUiUrl: string, scene: Scene): Promise<Viewed> {
  const page = await browser.newPage({ viewport: { width: 1440, height: 1100 }, deviceScaleFactor: 1 });
  await page.goto(webUiUrl + scene.path, { waitUntil: 'domcontentloaded' });
  let missing: string[] = [];
  await waitUntil(
    async () => {
      // biome-ignore lint/performance/useDomNodeTextContent: only what is rendered can be read by a person
      const text = (await page.locator('body').innerText()).replace(/\s+/g, ' ');
      missing = scene.finds
        .filter((what) => (typeof what === 'string' ? !text.includes(what) : !what.test(text)))
        .map(String);
      return missing.length === 0;
    },
    '',
    FIND_TIMEOUT_MS,
    250,
  ).catch(() => {});
  return { page, missing };
}
