/** `npm run histories`: records one history of each saga's success and unwind into `test/histories/`, beside what is there. */
import { execFile } from 'node:child_process';
import { access, mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { ReconcilerName } from '../../model/reconcilers.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { waitUntil } from '../../worker/child-process.ts';
import { findTemporalBinary } from '../../worker/temporal-server.ts';
import { type Harness, refused, startHarness } from '../support/harness.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
/** A change of behaviour is recorded beside the old histories, under a name of its own. */
const VERSION = '0001';

/** Each recording, by the name of its file: brings about what is to be recorded and returns the workflow's id. */
const RECORDINGS: Readonly<Record<string, (harness: Harness) => Promise<string>>> = {
  'instance-start.success': async (harness) => workflowIds.start(await harness.running()),
  'instance-start.unwound': async (harness) => {
    const id = await harness.create();
    harness.everywhere(({ agent }) =>
      agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
    );
    await refused(harness.client.startInstance(id));
    return workflowIds.start(id);
  },
  'instance-start.register-refused': async (harness) => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
    await refused(harness.client.startInstance(id));
    return workflowIds.start(id);
  },
  'instance-start.refused': async (harness) => {
    const id = await harness.create(undefined, { ncpus: 200 });
    await refused(harness.client.startInstance(id));
    return workflowIds.start(id);
  },
  'instance-migrate.success': async (harness) => {
    const id = await harness.running();
    await harness.client.migrateInstance(id, (await harness.placed(id)).there.id);
    return workflowIds.migrate(id);
  },
  'instance-migrate.unwound': async (harness) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    there.agent.faults.plant({ call: 'state:migration_target', act: { type: 'refuse', status: 409 } });
    await refused(harness.client.migrateInstance(id, there.id));
    return workflowIds.migrate(id);
  },
  'instance-update.moved': async (harness) => {
    const id = await harness.running();
    const { there } = await harness.placed(id);
    await harness.client.migrateInstance(id, there.id);
    await waitUntil(async () => (await harness.record(id)).active?.sledId === there.id, 'it never moved');
    return workflowIds.update(id);
  },
  'instance-update.unwound': async (harness) => {
    const id = await harness.create();
    harness.everywhere(({ agent }) =>
      agent.faults.plant({ call: 'state:running', act: { type: 'refuse', status: 409 } }),
    );
    await refused(harness.client.startInstance(id));
    await waitUntil(async () => (await harness.record(id)).instance.activeVmmId === null, 'it was never cleared');
    return workflowIds.update(id);
  },
  'instance-stop.success': async (harness) => {
    const id = await harness.running();
    await harness.client.stopInstance(id);
    await harness.shows(id, 'stopped');
    return workflowIds.stop(id);
  },
  'sled-drain.drained': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    await harness.client.drainSled(here.id);
    await harness.client.waitForDrain(here.id);
    await harness.client.setSledPolicy(here.id, 'provisionable');
    return workflowIds.drain(here.id);
  },
  'sled-drain.incomplete': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'refuse', status: 409 } }));
    await harness.client.drainSled(here.id);
    await harness.client.waitForDrain(here.id);
    await harness.client.setSledPolicy(here.id, 'provisionable');
    return workflowIds.drain(here.id);
  },
  'sled-drain.stopped': async (harness) => {
    const { here } = await harness.placed(await harness.running());
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'register', act: { type: 'delay', ms: 1_000 } }));
    await harness.client.drainSled(here.id);
    await waitUntil(async () => (await harness.client.getDrain(here.id)).moving.length > 0, 'it never began');
    await harness.client.stopDrain(here.id);
    await harness.client.waitForDrain(here.id);
    await harness.client.setSledPolicy(here.id, 'provisionable');
    return workflowIds.drain(here.id);
  },
  'vmm-unwind.success': async (harness) => {
    const id = await harness.create();
    harness.everywhere(({ agent }) => agent.faults.plant({ call: 'state:running', act: { type: 'drop_before' } }));
    const start = refused(harness.client.startInstance(id));
    await waitUntil(async () => (await harness.record(id)).active?.toldAt != null, 'its sled was never told');
    const vmmId = (await harness.record(id)).active?.id ?? '';
    await harness.temporal.workflow.getHandle(workflowIds.start(id)).terminate('by hand');
    await start;
    await waitUntil(async () => (await harness.record(id)).shown === 'stopped', 'it was never unwound');
    return workflowIds.unwind(vmmId);
  },
  'watcher.success': async (harness) => byHand(harness, 'watcher'),
  'updater-scan.success': async (harness) => byHand(harness, 'updater'),
  'reaper.success': async (harness) => byHand(harness, 'reaper'),
  'auto-restart.success': async (harness) => byHand(harness, 'auto-restart'),
};

async function byHand(harness: Harness, name: ReconcilerName): Promise<string> {
  await harness.client.runReconciler(name);
  return workflowIds.reconcileOnce(name);
}

/** What names the machine that recorded it says nothing of the workflow. */
function portable(key: string, value: unknown): unknown {
  if (key === 'stackTrace') return '';
  if (key === 'identity' || key === 'originalExecutionRunIdentity') return 'recorder';
  if (key === 'name' && typeof value === 'string') return value.replace(/^\d+@[^-]*/, 'recorder');
  return value;
}

const { path: binary } = await findTemporalBinary();
const harness = await startHarness();
try {
  await mkdir(folder, { recursive: true });
  for (const [name, bringAbout] of Object.entries(RECORDINGS)) {
    const file = `${folder}${name}.${VERSION}.json`;
    const known = await access(file).then(
      () => true,
      () => false,
    );
    if (known) {
      console.log(`kept  ${name}`);
      continue;
    }
    const workflowId = await bringAbout(harness);
    harness.everywhere(({ agent }) => agent.faults.clear());
    const handle = harness.temporal.workflow.getHandle(workflowId);
    await handle.result().catch(() => {});
    const shown = await promisify(execFile)(
      binary,
      ['workflow', 'show', '--workflow-id', workflowId, '--output', 'json', '--address', harness.stack.temporalAddress],
      { maxBuffer: 64 * 1024 * 1024 },
    );
    const history: unknown = JSON.parse(shown.stdout, portable);
    await writeFile(file, `${JSON.stringify(history, null, 1)}\n`);
    console.log(`new   ${name}`);
  }
} finally {
  await harness.close();
}
