/** Certificates that live for seconds: everything goes on across many renewals, and no process is started again. */
import { connect } from 'node:tls';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import { readCertificate } from '../../platform/identity/certificates.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { Folders, materialOf } from '../support/identities.ts';

/** Long enough for a busy machine to renew in the last third, in milliseconds. */
const LIFETIME_MS = 18_000;

const folders = new Folders();
let harness: Harness;
beforeAll(async () => {
  harness = await startHarness({ sledTls: true, sleds: 2, certificateLifetimeMs: LIFETIME_MS });
});
afterAll(async () => {
  await harness?.close();
  await folders.close();
});

/** What a listener shows to who comes now. */
async function certificateAt(url: string): Promise<{ serial: string; notAfter: Date }> {
  const { authority } = harness.stack;
  if (authority === null) throw new Error('the stack has no authority');
  const caller = await materialOf(authority, { kind: 'control_plane' });
  const { hostname, port } = new URL(url);
  const raw = await new Promise<Buffer>((resolve, reject) => {
    const options = { key: caller.privateKeyPem, cert: caller.certificatePem, rejectUnauthorized: false };
    const socket = connect({ host: hostname, port: Number(port), ...options }, () => {
      resolve(socket.getPeerCertificate().raw);
      socket.destroy();
    });
    socket.once('error', reject);
  });
  return readCertificate(Uint8Array.from(raw));
}

test('agents and the control plane renew before they expire, and a guest moves on between them', async () => {
  const listeners = [harness.stack.api.sledUrl ?? '', ...harness.stack.sleds.map(({ agent }) => agent.url)];
  const first = await Promise.all(listeners.map(certificateAt));
  const id = await harness.running();
  for (let round = 1; round <= 3; round++) {
    const before = await Promise.all(listeners.map(certificateAt));
    await waitUntil(
      async () => {
        const now = await Promise.all(listeners.map(certificateAt));
        for (const { notAfter } of now) expect(notAfter.getTime()).toBeGreaterThan(Date.now());
        return now.every(({ serial }, index) => serial !== before[index]?.serial);
      },
      'a certificate was never renewed',
      60_000,
      200,
    );
    const { there } = await harness.placed(id);
    await harness.client.migrateInstance(id, there.id);
    await harness.shows(id, 'running');
    expect((await harness.record(id)).active?.sledId).toBe(there.id);
  }
  for (const { notAfter } of first) expect(notAfter.getTime()).toBeLessThan(Date.now());
  for (const sled of harness.stack.sleds) {
    const certificates = await harness.client.listSledCertificates(sled.id);
    expect(certificates.length).toBeGreaterThan(3);
    expect(certificates.every((one) => one.time_revoked === null)).toBe(true);
  }
  await harness.client.stopInstance(id);
  await harness.shows(id, 'stopped');
  await harness.rests(id);
  await harness.examined(true);
});
