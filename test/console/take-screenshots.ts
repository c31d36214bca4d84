/** `npm run screenshots:console`: what the console looks like, and a drag as it happens, into `docs/screenshots/`. */
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { Page } from 'playwright-core';
import { findChromium, NO_CHROMIUM, openBrowser } from '../support/browser.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';
import { animate, type Frame } from './animated-picture.ts';
import { builtConsole, look } from './console-page.ts';

const FOLDER = fileURLToPath(new URL('../../docs/screenshots/', import.meta.url));
const SIZE = { width: 1100, height: 640 };

const chromium = await findChromium();
if (chromium === null) {
  console.log(`skipped: ${NO_CHROMIUM}`);
  process.exit(0);
}
const { folder, remove } = await builtConsole();
const harness = await startHarness({ transitionMs: 700, consoleFolder: folder });
const browser = await openBrowser(chromium);
try {
  const dragged = await playFleet(harness);
  for (const scheme of ['light', 'dark'] as const) await photograph(scheme, dragged);
  await record(dragged);
} finally {
  await browser.close();
  await harness.close();
  await remove();
}

/** A small fleet in which something has happened; returns the id of an instance that runs. */
async function playFleet({ client, create, shows, placed, everywhere }: Harness): Promise<string> {
  const ids: Record<string, string> = {};
  for (const name of ['web-1', 'web-2', 'shop', 'search', 'mail', 'build', 'archive']) {
    ids[name] = await create(name, { description: `what ${name} does` });
    if (name === 'archive') continue;
    await client.startInstance(ids[name]);
    await shows(ids[name], 'running');
  }
  const moved = ids['web-1'] ?? '';
  await client.migrateInstance(moved, (await placed(moved)).there.id);
  await shows(moved, 'running');
  const report = await create('report');
  everywhere(({ agent }) =>
    agent.faults.plant({
      call: 'state:running',
      act: { type: 'refuse', status: 409, message: 'the hypervisor is out of order' },
    }),
  );
  await refused(client.startInstance(report));
  everywhere(({ agent }) => agent.faults.clear());
  return moved;
}

async function photograph(colorScheme: 'light' | 'dark', id: string): Promise<void> {
  const { page, close } = await look(browser, harness.stack.apiUrl, { colorScheme, viewport: SIZE });
  const views = {
    fleet: ['#/', 'undone'],
    instance: [`#/instances/${id}`, 'migrate succeeded'],
    activity: ['#/activity', 'The numbers of Update lag'],
  } as const;
  for (const [name, [hash, last]] of Object.entries(views)) {
    await page.evaluate(`location.hash = '${hash}'`);
    await page.getByText(last).first().waitFor();
    await page.waitForTimeout(500);
    await page.screenshot({ path: `${FOLDER}console-${name}-${colorScheme}.png` });
    console.log(`taken   console-${name}-${colorScheme}`);
  }
  await close();
}

/** A tile is taken, carried to another sled, let go, and arrives. */
async function record(id: string): Promise<void> {
  const { page, close } = await look(browser, harness.stack.apiUrl, {
    colorScheme: 'light',
    viewport: { width: 960, height: 440 },
    reducedMotion: 'no-preference',
  });
  const { name } = await harness.client.getInstance(id);
  const { there } = await harness.placed(id);
  const frames: Frame[] = [];
  const shoot = async (ms: number) => frames.push({ png: await page.screenshot(), ms });
  const [from, to] = await Promise.all([
    middleOf(page, `.tile[data-instance="${id}"]`),
    middleOf(page, `[data-sled="${there.id}"]`),
  ]);
  await shoot(1_200);
  await page.mouse.move(from.x - 40, from.y + 12);
  await page.mouse.down();
  for (let step = 1; step <= 6; step += 1) {
    await page.mouse.move(from.x + ((to.x - from.x) * step) / 6, from.y + ((to.y - from.y) * step) / 6);
    await shoot(160);
  }
  await shoot(500);
  await page.mouse.up();
  const isThere = page
    .locator(`[data-sled="${there.id}"] .tile:not(.is-arriving)`, { hasText: name })
    .getByText('completed');
  while (frames.length < 60 && !(await isThere.isVisible())) await shoot(120);
  await shoot(2_500);
  await writeFile(`${FOLDER}console-drag.png`, animate(frames));
  console.log(`taken   console-drag, ${frames.length} frames`);
  await close();
}

async function middleOf(page: Page, selector: string): Promise<{ x: number; y: number }> {
  const place = page.locator(selector).first();
  await place.waitFor();
  const box = await place.boundingBox();
  if (box === null) throw new Error(`${selector} is not on the page`);
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}
