/** How two QEMUs encrypt the stream of a migration, and know that the other end is of the same authority. */
import { join } from 'node:path';
import { certificateSubject } from '../../platform/identity/certificates.ts';
import type { IdentityHolder } from '../../platform/identity/holder.ts';
import type { Disk } from '../disk.ts';
import type { QemuProcess } from './qemu-process.ts';

const FOLDER = 'migration-tls';

/**
 * Gives a QEMU the sled's key and certificate for one migration, and has that migration use them; without an identity
 * (`null`) does nothing. QEMU reads them when it is given their folder; from then on they are only in its memory. Throws
 * what QEMU answers, or a `DiskError`.
 * Source: https://www.qemu.org/docs/master/system/tls.html
 */
export async function secureMigration(
  process: Pick<QemuProcess, 'execute' | 'folder'>,
  disk: Disk,
  holder: IdentityHolder | null,
  side: { readonly endpoint: 'server' } | { readonly endpoint: 'client'; readonly serverHost: string },
): Promise<void> {
  if (holder === null) return;
  const { material } = holder;
  const dir = join(process.folder, FOLDER);
  const id = 'migration-tls';
  await disk.clear(dir);
  disk.makeFolder(dir, 0o700);
  try {
    const files = {
      'ca-cert.pem': material.authorityPem,
      [`${side.endpoint}-cert.pem`]: material.certificatePem,
      [`${side.endpoint}-key.pem`]: material.privateKeyPem,
    };
    for (const [name, content] of Object.entries(files)) disk.writePrivateFile(join(dir, name), content);
    // Left by an earlier migration, with a certificate that may have expired.
    await process.execute('object-del', { id }).catch(() => {});
    await process.execute('object-add', {
      'qom-type': 'tls-creds-x509',
      id,
      dir,
      endpoint: side.endpoint,
      'verify-peer': true,
      priority: 'NORMAL:-VERS-ALL:+VERS-TLS1.3',
    });
  } finally {
    // The key goes, now or when it can be removed.
    await disk.removeTreeSoon(dir);
  }
  await process.execute('migrate-set-parameters', {
    'tls-creds': id,
    // Looked up when somebody connects: as long as there is none of that name, nobody is let in.
    ...(side.endpoint === 'client' ? { 'tls-hostname': side.serverHost } : { 'tls-authz': SOURCE }),
  });
}

const SOURCE = 'migration-source';

/**
 * Has a QEMU that waits for a guest take it from this sled; until then it takes it from none. For `null`, between sleds
 * without identities, does nothing. Throws what QEMU answers.
 */
export async function admitSource(process: Pick<QemuProcess, 'execute'>, sledId: string | null): Promise<void> {
  if (sledId === null) return;
  const identity = certificateSubject({ kind: 'sled', sledId });
  await process.execute('object-del', { id: SOURCE }).catch(() => {});
  await process.execute('object-add', { 'qom-type': 'authz-simple', id: SOURCE, identity });
}
