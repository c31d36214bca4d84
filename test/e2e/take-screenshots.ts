/** `npm run screenshots`: plays the scenes on a stack of its own and keeps what a browser sees in `docs/screenshots/`. */
import { mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { findChromium, NO_CHROMIUM, openBrowser } from '../support/browser.ts';
import { startHarness } from '../support/harness.ts';
import { viewScene } from './web-ui-pages.ts';
import { playScenes } from './web-ui-scenes.ts';

const folder = fileURLToPath(new URL('../../docs/screenshots/', import.meta.url));
const chromium = await findChromium();
if (chromium === null) {
  console.log(`skipped: ${NO_CHROMIUM}`);
  process.exit(0);
}
const harness = await startHarness({ reconcileEveryMs: 0 });
try {
  await mkdir(folder, { recursive: true });
  const { scenes, release } = await playScenes(harness);
  const browser = await openBrowser(chromium);
  try {
    for (const scene of scenes) {
      const missing = await viewScene(browser, harness.stack.temporalUiUrl ?? '', scene, async (page, tab) => {
        const suffix = tab === null ? '' : `-${tab.toLowerCase().replaceAll(' ', '-')}`;
        await page.screenshot({ path: `${folder}${scene.name}${suffix}.png` });
      });
      console.log(missing.length === 0 ? `taken   ${scene.name}` : `LACKING ${scene.name}: ${missing.join('; ')}`);
      if (missing.length > 0) process.exitCode = 1;
    }
  } finally {
    await release();
    await browser.close();
  }
} finally {
  await harness.close();
}
