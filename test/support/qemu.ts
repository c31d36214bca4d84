/** Real VMs for tests, where this machine can run them. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Disk } from '../../sled-agent/disk.ts';
import type { PlantedFaults } from '../../sled-agent/faults.ts';
import { type PeerTransport, PLAIN_TRANSPORT } from '../../sled-agent/peer-transport.ts';
import { type GuestImage, makeGuestImage } from '../../sled-agent/qemu/guest-image.ts';
import { findQemu, type QemuProgram } from '../../sled-agent/qemu/qemu-program.ts';
import { QemuHypervisor, type QemuHypervisorOptions } from '../../sled-agent/qemu-hypervisor.ts';
import { cacheDirectory } from '../../stack/temporal-binary.ts';

export interface QemuForTests {
  readonly program: QemuProgram;
  readonly image: GuestImage;
}

/** What runs a small guest, in bytes. */
export const GUEST_MEMORY_BYTES = 96 * 1024 ** 2;

/** QEMU and a guest; `null`, reported in one clear line, where this machine has none: then the tests that need them are skipped. */
export async function qemuForTests(what: string): Promise<QemuForTests | null> {
  try {
    return { program: await findQemu(), image: await makeGuestImage(cacheDirectory()) };
  } catch (error) {
    console.warn(`SKIPPED: ${what}: ${error instanceof Error ? error.message : error}`);
    return null;
  }
}

/** Makes a hypervisor for an agent. Always TCG: what a test shows must not depend on the machine. */
export function qemuHypervisor(
  qemu: QemuForTests,
  dataDir: string,
  options: Partial<QemuHypervisorOptions> = {},
): (faults: PlantedFaults, agentAddress: () => string, transport?: PeerTransport, disk?: Disk) => QemuHypervisor {
  return (faults, agentAddress, transport = PLAIN_TRANSPORT, disk = undefined) =>
    new QemuHypervisor({
      ...qemu,
      accelerator: 'tcg',
      dataDir,
      faults,
      agentAddress,
      transport,
      ...(disk === undefined ? {} : { disk }),
      endWithAgent: true,
      // That of an agent of the command's under TCG: guests go between the two.
      cpuModels: ['qemu64-v1'],
      ...options,
    });
}

/** A folder that `close` removes. */
export async function temporaryFolder(parent = tmpdir()): Promise<{ path: string; close: () => Promise<void> }> {
  const path = await mkdtemp(join(parent, 'mooring-test-'));
  return { path, close: () => rm(path, { recursive: true, force: true }) };
}
