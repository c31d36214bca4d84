/** The main job on real VMs: the demo's scenario, and a console that is followed across migrations. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { playScenario, readScenario } from '../../cli/scenario.ts';
import { MooringClient } from '../../client/mooring-client.ts';
import { waitUntil } from '../../platform/host/child-process.ts';
import { type RunningStack, startStack } from '../../stack/stack.ts';
import type { InstanceView } from '../../wire/operator-api/instances.ts';
import { type RunningCommand, startCommand } from '../support/command.ts';
import { GUEST_MEMORY_BYTES, qemuForTests } from '../support/qemu.ts';

const qemu = await qemuForTests('the end-to-end scenario on real VMs');
const PATIENT_MS = 90_000;

describe.skipIf(qemu === null)('on real VMs', () => {
  let stack: RunningStack;
  const commands: RunningCommand[] = [];
  beforeAll(async () => {
    stack = await startStack({
      sleds: 3,
      hypervisor: 'qemu',
      reconcileEveryMs: 1_000,
      env: { ...process.env, DATABASE_URL: '', TEMPORAL_ADDRESS: '' },
    });
  });
  afterAll(async () => {
    for (const command of commands) await command.stop('SIGKILL');
    await stack?.stop();
  });

  test('the demo’s scenario ends as it says', async () => {
    const scenario = await readScenario(new URL('../../cli/demo.yaml', import.meta.url).pathname);
    const results = await playScenario(stack, scenario, () => {}, { ncpus: 1, memory: GUEST_MEMORY_BYTES });
    expect(results.filter((result) => result.problems.length > 0)).toEqual([]);
    expect(results).toHaveLength(scenario.steps.length);
  });

  test('“mooring instance console” follows the guest across two migrations, and loses nothing', async () => {
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
    const console = startCommand(['instance', 'console', name, '--project', project, '--api-url', stack.apiUrl]);
    commands.push(console);
    const counts = () => [...console.stdout.matchAll(/^count (\d+)\r?\n/gm)].map((match) => Number(match[1]));
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
    expect(counts(), console.output).toEqual(counts().map((_, index) => index + 1));

    await client.stopInstance(name, { project });
    await comes('stopped', ({ run_state }) => run_state === 'stopped');
  });
});
