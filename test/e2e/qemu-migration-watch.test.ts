/** A real guest's migration, slow enough to be watched: what an operator sees of it while it is under way, and afterwards. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { currentDetails, migrationWatchOf } from '../support/details.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { GUEST_MEMORY_BYTES, qemuForTests } from '../support/qemu.ts';

const qemu = await qemuForTests('the progress of a real migration');
/** A booted guest has some tens of MiB that aren't zero: it is on its way for seconds. */
const BYTES_PER_SECOND = 6 * 1024 ** 2;
const PATIENT_MS = 120_000;

describe.skipIf(qemu === null)('on real VMs', () => {
  let harness: Harness;
  beforeAll(async () => {
    harness = await startHarness({ sleds: 2, hypervisor: 'qemu', migrationBandwidth: BYTES_PER_SECOND });
  });
  afterAll(() => harness?.close());

  test('the watch tells how much is left while the guest migrates, and at the end how long it stood still', async () => {
    const { client, temporal } = harness;
    const id = await harness.running({ ncpus: 1, memory: GUEST_MEMORY_BYTES });
    await waitUntil(
      async () => /count \d/.test(Buffer.from((await client.readSerialConsole(id)).data).toString('latin1')),
      'the guest never counted',
      PATIENT_MS,
    );
    const { there } = await harness.placed(id);
    await client.migrateInstance(id, there.id);
    const watch = await migrationWatchOf(temporal, (await client.getMigration(id)).id);
    await waitUntil(
      async () => /under way[\s\S]*bytes left: [1-9]\d*[\s\S]*throughput: /.test(await currentDetails(watch)),
      'its details never showed how much is left',
      PATIENT_MS,
      100,
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}; they are now: ${await currentDetails(watch)}`);
    });
    // Between two of its activities there is none that is pending, and a new one has no heartbeat yet.
    await waitUntil(
      async () => {
        const [pending] = (await watch.describe()).raw.pendingActivities ?? [];
        const heartbeat = Buffer.from(pending?.heartbeatDetails?.payloads?.[0]?.data ?? []).toString();
        return /"bytesLeft":[1-9]/.test(heartbeat);
      },
      'its heartbeats never showed how much is left',
      PATIENT_MS,
      20,
    );
    const live = await client.getMigration(id);
    expect(live).toMatchObject({ outcome: null, source_state: 'in_progress', progress: { downtime_ms: null } });
    expect(live.progress?.bytes_left).toBeGreaterThan(0);

    const seen = await watch.result();
    expect(seen).toMatchObject({ outcome: 'completed', figures: { bytesLeft: 0 } });
    const details = await currentDetails(watch);
    const downtimeMs = Number(/downtime of the guest: (\d+) ms/.exec(details)?.[1]);
    // Under TCG the guest stands still while it is sent; under KVM not, but never for no time at all.
    expect(downtimeMs, details).toBeGreaterThan(0);
    const { progress } = await client.getMigration(id);
    expect(progress?.downtime_ms).toBe(downtimeMs);
    expect(progress?.bytes_sent).toBeGreaterThan(BYTES_PER_SECOND);
    const history = (await client.getInstanceHistory(id)).items.map(({ text }) => text);
    expect(history.join('\n')).toContain(`the guest stood still for ${downtimeMs} ms`);
    await client.stopInstance(id);
    await harness.shows(id, 'stopped');
  });
});
