/** The main job on real VMs: the demo's scenario, and a console that is followed across migrations. */
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { playScenario } from '../../cli/play-scenario.ts';
import { readScenario } from '../../cli/scenario.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { builtConsole, look } from '../console/console-page.ts';
import { findChromium, NO_CHROMIUM, openBrowser } from '../support/browser.ts';
import { type RunningCommand, startCommand } from '../support/command.ts';
import { GUEST_MEMORY_BYTES, qemuForTests } from '../support/qemu.ts';

const qemu = await qemuForTests('the end-to-end scenario on real VMs');
const PATIENT_MS = 90_000;
const chromium = qemu === null ? null : await findChromium();
if (qemu !== null && chromium === null) console.warn(`SKIPPED: a guest’s console on the page: ${NO_CHROMIUM}`);

describe.skipIf(qemu === null)('on real VMs', () => {
  let stack: RunningStack;
  const commands: RunningCommand[] = [];
  let built: Awaited<ReturnType<typeof builtConsole>> | null = null;
  let browser: Browser | null = null;
  beforeAll(async () => {
    built = chromium === null ? null : await builtConsole();
    stack = await startStack({
      consoleFolder: built?.folder,
      sleds: 3,
      hypervisor: 'qemu',
      reconcileEveryMs: 1_000,
      env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: '' },
    });
  });
  afterAll(async () => {
    await browser?.close();
    await built?.remove();
    for (const command of commands) await command.stop('SIGKILL');
    await stack?.stop();
  });

  /** Opens the page of an instance, whose terminal shows its counts, as far as there are lines for them. */
  const lookAt = async (instanceId: string) => {
    browser = await openBrowser(chromium ?? '');
    const { page, objections } = await look(browser, stack.apiUrl, { hash: `#/instances/${instanceId}` });
    const lines = page.locator('.xterm-rows > div');
    await lines.first().waitFor();
    const countsShown = async () =>
      (await lines.allTextContents()).flatMap((line) =>
        [...line.matchAll(/^count (\d+)/g)].map((found) => Number(found[1])),
      );
    return { objections, countsShown };
  };

  test('the demo’s scenario ends as it says', async () => {
    const scenario = await readScenario(new URL('../../cli/demo.yaml', import.meta.url).pathname);
    const results = await playScenario(stack, scenario, () => {}, { ncpus: 1, memory: GUEST_MEMORY_BYTES });
    expect(results.filter((result) => result.problems.length > 0)).toEqual([]);
    expect(results).toHaveLength(scenario.steps.length);
  });

  test('“mooring instance console”, and the page, follow the guest across two migrations, and lose nothing', async () => {
    const client = new MooringClient({ url: stack.apiUrl });
    const name = 'counter';
    const project = 'default';
    const comes = async (what: string, check: (instance: InstanceView) => boolean) =>
      waitUntil(async () => check(await client.getInstance(name, { project })), `it was never ${what}`, PATIENT_MS);
    await client.createInstance(
      { name, hostname: name, description: '', ncpus: 1, memory: GUEST_MEMORY_BYTES, start: true },
      { project },
    );
    await comes('running', ({ run_state }) => run_state === 'running');
    const follower = startCommand(['instance', 'console', name, '--project', project, '--api-url', stack.apiUrl]);
    commands.push(follower);
    const seen = chromium === null ? null : await lookAt((await client.getInstance(name, { project })).id);
    const counts = () => [...follower.stdout.matchAll(/^count (\d+)\r?\n/gm)].map((match) => Number(match[1]));
    const countsBeyond = (beyond: number) =>
      waitUntil(() => (counts().at(-1) ?? 0) > beyond, `the console showed no count beyond ${beyond}`, PATIENT_MS);
    await countsBeyond(0);
    for (let hop = 0; hop < 2; hop += 1) {
      const before = await client.getInstance(name, { project });
      const there = stack.sleds.find(({ id }) => id !== before.sled_id);
      await client.migrateInstance(name, there?.id ?? '', { project });
      await comes('moved', (now) => now.run_state === 'running' && now.sled_id === there?.id);
      await countsBeyond((counts().at(-1) ?? 0) + 5);
    }
    expect(counts(), follower.output).toEqual(counts().map((_, index) => index + 1));
    // The page's own console shows the same guest, whose count went on where it was, without a gap.
    if (seen !== null) {
      const shown = () => seen.countsShown();
      const last = counts().at(-1) ?? 0;
      await waitUntil(
        async () => ((await shown()).at(-1) ?? 0) >= last,
        `the page showed no count ${last}`,
        PATIENT_MS,
      );
      const all = await shown();
      expect(all).toEqual(all.map((_, index) => (all[0] ?? 0) + index));
      expect(all.length).toBeGreaterThan(5);
      expect(seen.objections).toEqual([]);
    }

    await client.stopInstance(name, { project });
    await comes('stopped', ({ run_state }) => run_state === 'stopped');
  });
});
