/** The console, in a real browser, on one stack: what a person sees there, may do there, and what nobody can make it do. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { sql } from 'drizzle-orm';
import { pino } from 'pino';
import type { Browser, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type RunningApi, startApi } from '../../api/server.ts';
import { playScenario } from '../../cli/play-scenario.ts';
import { readScenario } from '../../cli/scenario.ts';
import type { AccessRole } from '../../model/access.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { findChromium, NO_CHROMIUM, openBrowser } from '../support/browser.ts';
import { CuttableProxy } from '../support/cuttable-proxy.ts';
import { type Harness, silence, startHarness, wake } from '../support/harness.ts';
import { eventually } from '../support/wait.ts';
import { builtConsole, type Looked, look, seenFleet } from './console-page.ts';
import { fleetOf } from './large-fleet.ts';

const chromium = await findChromium();
if (chromium === null) console.warn(`SKIPPED: the console was not looked at: ${NO_CHROMIUM}`);
const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
/** Markup that would run, were it not taken for text. */
const PLANTED = '<img src=x onerror="globalThis.planted=1"><script>globalThis.planted=2</script>';

describe.skipIf(chromium === null)('on the console', { timeout: 400_000 }, () => {
  let harness: Harness;
  let browser: Browser;
  let folder: string;
  /** Another API of the same installation, which asks for tokens. */
  let guarded: RunningApi;
  let remove = async () => {};
  const opened: Looked[] = [];

  beforeAll(async () => {
    ({ folder, remove } = await builtConsole());
    harness = await startHarness({ consoleFolder: folder });
    guarded = await startApi({
      databaseUrl: harness.stack.databaseUrl,
      temporal: harness.stack.temporal,
      host: '127.0.0.1',
      port: 0,
      log: pino({ level: 'silent' }),
      consoleFolder: folder,
      plainSleds: true,
    });
    browser = await openBrowser(chromium ?? '');
  }, 300_000);
  afterEach(async () => {
    // Whatever it was about: the browser had nothing to refuse, and nobody else was asked.
    const objections = opened.flatMap((one) => one.objections);
    for (const one of opened.splice(0)) await one.close();
    harness.everywhere(({ agent }) => agent.faults.clear());
    expect(objections).toEqual([]);
  });
  afterAll(async () => {
    await browser?.close();
    await guarded?.stop();
    await harness?.close();
    await remove();
  });

  const open = async (options: Parameters<typeof look>[2] = {}, url = harness.stack.apiUrl): Promise<Page> => {
    const looked = await look(browser, url, options);
    opened.push(looked);
    return looked.page;
  };
  const tokenFor = async (role: AccessRole, project?: string) =>
    (await harness.client.createToken({ name: `${role}-${Math.random().toString(36).slice(2)}`, role, project })).token;
  const tile = (page: Page, name: string) =>
    page.locator('article.tile:not(.is-arriving)', { has: page.getByText(name, { exact: true }) });
  const column = (page: Page, sled: string) => page.getByRole('region', { name: `Sled ${sled}`, exact: true });
  const listed = async (): Promise<Record<string, string>> => {
    const instances: InstanceView[] = [];
    for await (const instance of harness.client.listInstances()) instances.push(instance);
    return Object.fromEntries(
      instances.map(({ name, run_state, sled_id }) => [
        name,
        `${run_state} ${sled_id === null ? 'Instances on no sled' : `Sled ${harness.sled(sled_id).name}`}`,
      ]),
    );
  };
  /** Waits until the page shows what the API says. */
  const showsAll = async (page: Page) => {
    let [seen, said] = [{}, {}];
    await eventually(async () => {
      [seen, said] = await Promise.all([seenFleet(page), listed()]);
      return JSON.stringify(Object.entries(seen).sort()) === JSON.stringify(Object.entries(said).sort());
    }, 'the page never showed what the API says').catch((error) => {
      expect(seen, error.message).toEqual(said);
    });
  };
  const drag = async (page: Page, name: string, sled: string) => {
    const from = await tile(page, name).boundingBox();
    const to = await column(page, sled).boundingBox();
    if (from === null || to === null) throw new Error('there is nothing to drag, or nowhere');
    await page.mouse.move(from.x + 40, from.y + 45);
    await page.mouse.down();
    await page.mouse.move(to.x + to.width / 2, to.y + 140, { steps: 5 });
    await page.mouse.up();
  };

  test('the demo’s scenario is seen as it happens', async () => {
    await harness.client.deleteProject('default');
    const page = await open();
    const scenario = await readScenario(new URL('../../cli/demo.yaml', import.meta.url).pathname);
    const results = await playScenario(harness.stack, scenario, async ({ title, call }) => {
      await showsAll(page);
      // An attempt that was undone says why, where its instance is.
      if (title.includes('agent refuses')) {
        const [, reason] = /(out of order|no room for guests)/.exec(call) ?? [];
        await tile(page, 'beta')
          .getByText(new RegExp(`undone: .*${reason}`))
          .waitFor();
      }
    });
    expect(results.filter(({ problems }) => problems.length > 0)).toEqual([]);
    await page.getByRole('link', { name: 'Activity' }).click();
    await page.getByRole('region', { name: 'Failed in the last hour' }).getByText('out of order').waitFor();
  });

  test('a tile dragged onto a sled migrates its instance', async () => {
    const id = await harness.running({ name: 'dragged' });
    const { here, there } = await harness.placed(id);
    const page = await open();
    await page.emulateMedia({ reducedMotion: 'no-preference' });
    await drag(page, 'dragged', there.name);
    await page.emulateMedia({ reducedMotion: 'reduce' });
    await column(page, there.name).locator('.tile:not(.is-arriving)', { hasText: 'dragged' }).waitFor();
    expect((await harness.record(id)).active?.sledId).toBe(there.id);
    // How it went is said at the tile.
    await tile(page, 'dragged')
      .getByText(/^completed/)
      .waitFor();
    // Let go of where it is, it stays; with Escape too.
    await drag(page, 'dragged', there.name);
    const box = await tile(page, 'dragged').boundingBox();
    await page.mouse.move((box?.x ?? 0) + 40, (box?.y ?? 0) + 45);
    await page.mouse.down();
    const away = await column(page, here.name).boundingBox();
    await page.mouse.move((away?.x ?? 0) + 40, (away?.y ?? 0) + 140, { steps: 3 });
    await page.locator('.dragged').waitFor();
    await page.keyboard.press('Escape');
    await page.mouse.up();
    expect(await page.locator('.dragged').count()).toBe(0);
    await harness.rests(id);
    expect((await harness.record(id)).active?.sledId).toBe(there.id);
  });

  test('one that is refused says why, at the sled and at the tile, and nothing has moved', async () => {
    const id = await harness.running({ name: 'unwelcome' });
    const { here, there } = await harness.placed(id);
    there.agent.faults.plant({
      call: 'state:migration_target',
      act: { type: 'refuse', status: 409, message: 'the hypervisor is out of order' },
    });
    const page = await open();
    await drag(page, 'unwelcome', there.name);
    const alert = column(page, there.name).getByRole('alert');
    await alert.getByText('the hypervisor is out of order').waitFor();
    await tile(page, 'unwelcome').getByText('the hypervisor is out of order').first().waitFor();
    await alert.getByRole('button', { name: 'Dismiss' }).click();
    expect(await column(page, there.name).getByRole('alert').count()).toBe(0);
    await harness.rests(id);
    expect((await harness.record(id)).active?.sledId).toBe(here.id);
    // What can't be moved now says so without being asked for.
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    await showsAll(page);
    await drag(page, 'unwelcome', there.name);
    await tile(page, 'unwelcome').getByText('start it first').waitFor();
  });

  test('the keyboard alone starts, moves, stops and deletes', async () => {
    const id = await harness.create('by-keys');
    const page = await open();
    const menu = async (name: string) => {
      await tile(page, 'by-keys').getByRole('button', { name: 'Actions for by-keys' }).focus();
      await page.keyboard.press('Enter');
      await choose(name);
    };
    /** Goes by Tab to a button of the dialog, as one must who has no mouse, and presses it. */
    const choose = async (name: string) => {
      await page.getByRole('dialog').getByRole('button', { name }).first().waitFor();
      for (let pressed = 0; pressed < 30; pressed += 1) {
        const at = await page.evaluate<string>("document.activeElement?.textContent ?? ''");
        if (at.startsWith(name)) return page.keyboard.press('Enter');
        await page.keyboard.press('Tab');
      }
      throw new Error(`Tab never came to "${name}"`);
    };
    await menu('Start');
    await harness.shows(id, 'running');
    const { there } = await harness.placed(id);
    await showsAll(page);
    await menu('Migrate to a sled…');
    await choose(there.name);
    await eventually(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
    await harness.rests(id);
    await showsAll(page);
    await menu('Stop');
    await harness.shows(id, 'stopped');
    await showsAll(page);
    await menu('Delete…');
    await choose('Delete');
    await eventually(async () => !('by-keys' in (await seenFleet(page))), 'its tile never went');
  });

  test('an answer that comes after newer events changes nothing: what was deleted meanwhile stays away', async () => {
    const id = await harness.running({ name: 'overtaken' });
    const page = await open();
    const held = pending();
    await page.route('**/stop*', async (route) => {
      const response = await route.fetch();
      await held.promise;
      await route.fulfill({ response });
    });
    await tile(page, 'overtaken').getByRole('button', { name: 'Actions for overtaken' }).click();
    const answered = page.waitForEvent('requestfinished', (request) => request.url().includes('/stop'));
    await page.getByRole('dialog').getByRole('button', { name: 'Stop' }).click();
    await harness.shows(id, 'stopped');
    await harness.client.deleteInstance(id);
    await eventually(async () => !('overtaken' in (await seenFleet(page))), 'its tile never went');
    held.resolve();
    await answered;
    // Two frames: the answer has been taken in by then, and drawn.
    await page.evaluate('new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))');
    expect('overtaken' in (await seenFleet(page))).toBe(false);
  });

  test('what a sled’s silence asks of one is a word that one gives', async () => {
    const id = await harness.running({ name: 'cut-off' });
    const { here } = await harness.placed(id);
    silence(here);
    await harness.reconcile();
    await harness.reconcile();
    const page = await open({ hash: `#/instances/${id}` });
    try {
      await page.getByRole('button', { name: 'Force stop…' }).click();
      const dialog = page.getByRole('dialog');
      expect(await dialog.getByRole('button', { name: 'Force stop' }).isDisabled()).toBe(true);
      await dialog.getByLabel(`I have made sure that sled "${here.name}" is powered off`).check();
      await dialog.getByRole('button', { name: 'Force stop' }).click();
      await harness.shows(id, 'stopped');
    } finally {
      wake(here);
      here.agent.faults.holdReports(false);
    }
    await harness.reconcile();
    // Its story, with links to Temporal, has it all.
    const story = page.getByRole('region', { name: 'Story' });
    await story.getByText('start succeeded').waitFor();
    expect(await story.getByRole('link').first().getAttribute('href')).toContain(harness.stack.temporalUiUrl);
  });

  test('a drain is seen as far as it has come, and a sled’s page has what is on it', async () => {
    const id = await harness.running({ name: 'evicted' });
    const { here } = await harness.placed(id);
    const page = await open({ hash: `#/sleds/${here.id}` });
    await page.getByRole('button', { name: 'Drain' }).click();
    const drain = page.getByRole('region', { name: `Drain of ${here.name}` });
    await drain.getByText(/is drained/).waitFor();
    expect((await harness.record(id)).active?.sledId).not.toBe(here.id);
    await page.goto(`${harness.stack.apiUrl}/#/activity`);
    await page
      .getByRole('region', { name: 'Drains' })
      .getByText(/is drained/)
      .waitFor();
    await page.goto(`${harness.stack.apiUrl}/#/sleds/${here.id}`);
    await page.getByRole('button', { name: 'Put into service' }).click();
    await page.getByText('takes new instances').waitFor();
  });

  test('the API’s document is a page of its own, under the same policy', async () => {
    const page = await open({ hash: 'docs' });
    await page.locator('.opblock-tag', { hasText: 'events' }).click();
    await page.locator('.opblock-summary-path[data-path="/v1/events"]').click();
    await page.getByText('Last-Event-ID').first().waitFor();
    expect(await serious(page)).toEqual([]);
    await page.setViewportSize({ width: 360, height: 740 });
    expect(await page.evaluate('document.documentElement.scrollWidth - innerWidth')).toBeLessThanOrEqual(0);
  });

  describe('with tokens', () => {
    test('one logs in, is told when that is no token, and is logged out when it is revoked', async () => {
      const page = await open({}, guarded.url);
      await page.getByLabel('Access token').fill('mooring-token-nonsense');
      await page.keyboard.press('Enter');
      await page.getByRole('alert').getByText('not one of this installation').waitFor();
      const made = await harness.client.createToken({ name: 'passing', role: 'viewer' });
      await page.getByLabel('Access token').fill(made.token);
      await page.getByRole('button', { name: 'Log in' }).click();
      await page.getByText('live').waitFor();
      const kept = await page.evaluate<string[]>(
        '[Object.keys(sessionStorage).join(), Object.values(localStorage).join(), document.cookie, location.href]',
      );
      expect(kept[0]).toBe('mooring-token');
      expect(kept.slice(1).join()).not.toContain(made.token);
      await harness.client.revokeToken(made.id);
      await page.getByRole('alert').getByText('revoked').waitFor();
      expect(await page.evaluate('sessionStorage.length')).toBe(0);
    });

    test('who logs in after another, in the same tab, sees nothing of what that one saw, and asks nothing that is refused', async () => {
      await harness.create('of-the-first');
      const other = await harness.client.createProject({ name: `next-${Date.now()}`, description: '' });
      const page = await open({ hash: '#/instances' }, guarded.url);
      const logIn = async (token: string) => {
        await page.getByLabel('Access token').fill(token);
        await page.getByRole('button', { name: 'Log in' }).click();
        await page.getByText('live').waitFor();
      };
      await logIn(await tokenFor('viewer'));
      await page.getByText('of-the-first').waitFor();
      await page.getByRole('button', { name: 'Log out' }).click();
      // As long as the new one's list has not come, there is nothing to see.
      const held = pending();
      await page.route('**/v1/instances?*', async (route) => {
        await held.promise;
        await route.continue();
      });
      await logIn(await tokenFor('viewer', other.name));
      expect(await page.getByText('of-the-first').count()).toBe(0);
      held.resolve();
      await page.getByText('0 instances').waitFor();
      const refused: string[] = [];
      page.on('response', (answer) => answer.status() >= 400 && refused.push(answer.url()));
      await page.evaluate("location.hash = '#/audit'");
      await page.getByText('not for this token').waitFor();
      expect(refused).toEqual([]);
    });

    test('each sees what the role may, and no button that would be refused', async () => {
      const id = await harness.running({ name: 'shared' });
      const other = await harness.client.createProject({ name: `other-${Date.now()}`, description: '' });
      const buttons = async (token: string) => {
        const page = await open({ token, hash: `#/instances/${id}` }, guarded.url);
        await page.getByRole('heading', { name: 'Story' }).waitFor();
        const found = await page.getByRole('toolbar').getByRole('button').allTextContents();
        const links = await page.getByRole('navigation').getByRole('link').allTextContents();
        return [...found, ...links, (await page.locator('.terminal').count()) > 0 ? 'console' : 'no console'];
      };
      const read = ['Fleet', 'Instances', 'Activity'];
      expect(await buttons(await tokenFor('viewer'))).toEqual([...read, 'Audit', 'API', 'no console']);
      expect(await buttons(await tokenFor('viewer', 'default'))).toEqual([...read, 'API', 'no console']);
      const change = ['Start', 'Stop', 'Reboot', 'Delete…'];
      expect(await buttons(await tokenFor('collaborator', 'default'))).toEqual([...change, ...read, 'API', 'console']);
      expect(await buttons(await tokenFor('collaborator'))).toEqual([
        'Migrate…',
        ...change,
        ...read,
        'Audit',
        'API',
        'console',
      ]);
      // What belongs to another project is not there, and nothing was asked that is refused.
      const page = await open({ token: await tokenFor('admin', other.name) }, guarded.url);
      await page.getByText('0 instances').waitFor();
      expect(await seenFleet(page)).toEqual({});
    });
  });

  test('what strangers write is text: names, descriptions, errors, what a guest prints', async () => {
    const id = await harness.running({ name: 'stranger', description: PLANTED });
    const { there } = await harness.placed(id);
    there.agent.faults.plant({
      call: 'state:migration_target',
      act: { type: 'refuse', status: 409, message: PLANTED },
    });
    const { db } = harness.database;
    // The API refuses such names; what is stored is shown as text all the same.
    await db.execute(sql`UPDATE instance SET name = ${PLANTED} WHERE id = ${id}`);
    const page = await open();
    await drag(page, PLANTED, there.name);
    await column(page, there.name).getByRole('alert').getByText('onerror').waitFor();
    const printed = `\u001b]0;${PLANTED}\u0007\u001b]8;;javascript:globalThis.planted=3\u0007press me\u001b]8;;\u0007 ${PLANTED} \u001b[38;2;1;2;3mcolours\u001b[0m`;
    await page.route('**/serial-console*', (route) => {
      const data = route.request().url().includes('from_start') ? [] : [...Buffer.from(printed)];
      return route.fulfill({ json: { data, last_byte_offset: printed.length } });
    });
    await tile(page, PLANTED).getByRole('link').click();
    await page.getByRole('heading', { name: PLANTED }).waitFor();
    await page.locator('.terminal').getByText('press me').first().waitFor();
    const link = await page.locator('.xterm-rows').getByText('press me').first().boundingBox();
    await page.mouse.click((link?.x ?? 0) + 5, (link?.y ?? 0) + 5);
    await page.getByText('Description').waitFor();
    for (const hash of ['#/activity', '#/audit', '#/instances']) {
      await page.evaluate(`location.hash = '${hash}'`);
      await page.getByText('onerror').first().waitFor();
    }
    expect(await page.evaluate('[globalThis.planted ?? null, document.title]')).toEqual([null, 'Mooring']);
    await db.execute(sql`UPDATE instance SET name = 'stranger' WHERE id = ${id}`);
  });

  test('the stream is cut and goes on: no change is lost, and nothing is listed anew', async () => {
    const proxy = await CuttableProxy.open('127.0.0.1', () => new URL(harness.stack.apiUrl).host);
    try {
      const page = await open({}, `http://${proxy.address}`);
      await page.getByText('live').waitFor();
      await showsAll(page);
      const asked: { path: string; cursor: string | undefined }[] = [];
      page.on('request', (request) =>
        asked.push({ path: new URL(request.url()).pathname, cursor: request.headers()['last-event-id'] }),
      );
      proxy.set('cut');
      const id = await harness.running({ name: 'unseen' });
      const gone = await harness.create('unseen-and-gone');
      await harness.client.deleteInstance(gone);
      expect('unseen' in (await seenFleet(page))).toBe(false);
      proxy.set('pass');
      await showsAll(page);
      expect(asked.filter(({ path }) => path === '/v1/events').map(({ cursor }) => cursor)).toEqual([
        expect.stringMatching(/./),
      ]);
      expect(asked.map(({ path }) => path)).not.toContain('/v1/instances');
      await harness.client.stopInstance(id);
      await harness.shows(id, 'stopped');
      await showsAll(page);
    } finally {
      await proxy.close();
    }
  });

  test('200 sleds and 10,000 instances: what is in sight is drawn, and the rest is counted', async () => {
    const page = await open({ hash: '#/audit' });
    // Its own stream is not the one that is answered here.
    await page.getByText('live').waitFor();
    const { sleds, instances } = fleetOf(200, 10_000);
    // One fails while the list is read, which still has it as it was.
    const [first] = instances('http://x/?limit=1').items;
    const failed = JSON.stringify({ id: (first as { id: string }).id, object: { ...first, run_state: 'failed' } });
    let streams = 0;
    await page.route('**/v1/events', async (route) => {
      streams += 1;
      // What is listed is all that there is: no other stream comes.
      if (streams > 1) return;
      await route.fulfill({
        contentType: 'text/event-stream',
        body: `event: reset\ndata: {"reason":"begin"}\nid: 1\n\nevent: instance\ndata: ${failed}\nid: 2\n\n`,
      });
    });
    await page.route('**/v1/system/hardware/sleds*', (route) => route.fulfill({ json: sleds(route.request().url()) }));
    await page.route('**/v1/instances?*', (route) => route.fulfill({ json: instances(route.request().url()) }));
    await page.goto(`${harness.stack.apiUrl}/`);
    await page.getByText('10,000 instances').waitFor();
    await page.getByText('1 failed').first().waitFor();
    expect(await page.locator('.tile').count()).toBeLessThan(100);
    expect(await page.locator('*').count()).toBeLessThan(2_500);
    await page.getByText('and 46 more').first().waitFor();
    await page.mouse.wheel(0, 1_000_000);
    await column(page, 'sled-199').waitFor();
    expect(await page.locator('.tile').count()).toBeLessThan(100);
    await page.getByLabel('Name or id').fill('vm-4711');
    await page.getByText('1 of 10,000 instances').waitFor();
    await page.goto(`${harness.stack.apiUrl}/#/instances`);
    await page.getByLabel('Name or id').fill('');
    await page.getByRole('link', { name: 'vm-0', exact: true }).waitFor();
    expect(await page.locator('.row').count()).toBeLessThan(60);
  });

  test.each([
    ['dark', 1280],
    ['light', 1280],
    ['dark', 390],
  ] as const)('nothing serious is in the way of anybody: %s, %i pixels wide', async (colorScheme, width) => {
    const id = await harness.running();
    const { here } = await harness.placed(id);
    const page = await open({ colorScheme, viewport: { width, height: 844 }, reducedMotion: 'reduce' });
    const { name } = await harness.client.getInstance(id);
    // Each with what is last to come there.
    const views = {
      '#/': name,
      '#/instances': name,
      [`#/instances/${id}`]: 'start succeeded',
      [`#/sleds/${here.id}`]: here.id,
      '#/activity': 'The numbers of Update lag',
      '#/audit': 'instance_start',
    };
    for (const [hash, there] of Object.entries(views)) {
      await page.evaluate(`location.hash = '${hash}'`);
      await page.getByText(there).first().waitFor();
      expect(await serious(page), hash).toEqual([]);
      expect(await page.evaluate('document.documentElement.scrollWidth - innerWidth'), hash).toBeLessThanOrEqual(0);
    }
    await page.evaluate("location.hash = '#/'");
    await page
      .getByRole('button', { name: /^Actions for/ })
      .first()
      .click();
    expect(await serious(page), 'the menu').toEqual([]);
    await page.getByRole('button', { name: 'Migrate to a sled…' }).click();
    expect(await serious(page), 'where to').toEqual([]);
    const login = await open({ colorScheme, viewport: { width, height: 844 } }, guarded.url);
    await login.getByLabel('Access token').waitFor();
    expect(await serious(login), 'login').toEqual([]);
  });
});

/** A promise that is kept from outside. */
function pending(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = () => {};
  const promise = new Promise<void>((kept) => {
    resolve = kept;
  });
  return { promise, resolve };
}

/** What axe-core finds that is serious, in words. It is put in by the browser's own console, which no policy holds. */
async function serious(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  const found: { impact?: string | null; id: string; nodes: { target: unknown; failureSummary?: string }[] }[] =
    await page.evaluate('axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => violations)');
  return found
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target}: ${failureSummary}`));
}
