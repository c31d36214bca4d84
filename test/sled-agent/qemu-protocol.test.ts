import { describe, test, vi } from 'vitest';
import { GUEST_MEMORY_BYTES, qemuForTests, qemuHypervisor } from '../support/qemu.ts';
import { conformance } from './conformance.ts';

vi.setConfig({ testTimeout: 300_000, hookTimeout: 300_000 });

const qemu = await qemuForTests('the conformance suite of the sled protocol on QEMU');
if (qemu === null) describe.skip('a sled agent with QEMU VMs', () => test('conforms', () => {}));
else
  conformance({
    name: 'QEMU',
    memoryBytes: GUEST_MEMORY_BYTES,
    outlivesAgent: true,
    hasConsole: true,
    make: (dataDir) => qemuHypervisor(qemu, dataDir),
  });
