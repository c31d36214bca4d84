/** A person opens the Web UI of the embedded stack in a real browser, and finds what happened, to whom and why. */
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findChromium, NO_CHROMIUM, openBrowser } from '../support/browser.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { viewScene } from './web-ui-pages.ts';
import { playScenes, type Scene } from './web-ui-scenes.ts';

const chromium = await findChromium();
if (chromium === null) console.warn(`SKIPPED: the Web UI was not looked at: ${NO_CHROMIUM}`);

describe.skipIf(chromium === null)('in the Web UI', { timeout: 400_000 }, () => {
  let harness: Harness;
  let browser: Browser;
  let scenes: Scene[] = [];
  let release = async () => {};
  beforeAll(async () => {
    harness = await startHarness({ reconcileEveryMs: 0 });
    ({ scenes, release } = await playScenes(harness));
    browser = await openBrowser(chromium ?? '');
  }, 300_000);
  afterAll(async () => {
    await release();
    await browser?.close();
    await harness?.close();
  });

  test.each([
    ['a start', 'start'],
    ['a migration', 'migration'],
    ['an update', 'update'],
    ['a start that was unwound, with the reason and what was undone', 'unwound-start'],
    ['a drain: what moved, and what could not, and why', 'drain'],
    ['a start that is stuck, with the attempts and the error of its step', 'stuck-start'],
    ['a start that is compensating', 'compensating'],
    ['all unwound starts, by a query', 'unwound-starts'],
    ['the story of an instance, by a query', 'story-of-an-instance'],
  ])('one finds %s', async (_, name) => {
    const scene = scenes.find((one) => one.name === name);
    if (scene === undefined) throw new Error(`there is no scene "${name}"`);
    expect(await viewScene(browser, harness.stack.temporalUiUrl ?? '', scene)).toEqual([]);
  });
});
