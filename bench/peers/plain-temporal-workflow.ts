import { proxyActivities, uuid4 } from '@temporalio/workflow';
import type { VmmRuntime } from '../../wire/sled-protocol.ts';

interface Size {
  readonly name: string;
  readonly projectId: string;
  readonly ncpus: number;
  readonly memoryBytes: number;
}
interface Place {
  readonly sledId: string;
  readonly sledName: string;
  readonly sledAddress: string;
  readonly ip: string;
  readonly port: number;
}
export interface PlacedVmm extends Size, Place {
  readonly vmmId: string;
  readonly instanceId: string;
}

export interface PlainActivities {
  readSize(instanceId: string): Promise<Size>;
  pickSled(size: Size): Promise<Place>;
  insertVmm(vmm: PlacedVmm): Promise<void>;
  reserve(vmm: PlacedVmm): Promise<void>;
  charge(vmm: PlacedVmm): Promise<void>;
  link(vmm: PlacedVmm): Promise<void>;
  registerVmm(vmm: PlacedVmm): Promise<VmmRuntime>;
  runVmm(vmm: PlacedVmm): Promise<VmmRuntime | null>;
  writeState(vmm: PlacedVmm, state: VmmRuntime): Promise<void>;
  markUnwound(vmm: PlacedVmm): Promise<void>;
  release(vmm: PlacedVmm): Promise<void>;
  refund(vmm: PlacedVmm): Promise<void>;
  unregisterVmm(vmm: PlacedVmm): Promise<void>;
}

const steps = proxyActivities<PlainActivities>({ startToCloseTimeout: '10s' });

export async function plainStart(instanceId: string): Promise<void> {
  const compensations: (() => Promise<void>)[] = [];
  try {
    const size = await steps.readSize(instanceId);
    const place = await steps.pickSled(size);
    const vmm: PlacedVmm = { ...size, ...place, instanceId, vmmId: uuid4() };
    await steps.insertVmm(vmm);
    compensations.unshift(() => steps.markUnwound(vmm));
    await steps.reserve(vmm);
    compensations.unshift(() => steps.release(vmm));
    await steps.charge(vmm);
    compensations.unshift(() => steps.refund(vmm));
    await steps.link(vmm);
    const registered = await steps.registerVmm(vmm);
    compensations.unshift(() => steps.unregisterVmm(vmm));
    await steps.writeState(vmm, registered);
    const running = await steps.runVmm(vmm);
    if (running !== null) await steps.writeState(vmm, running);
  } catch (error) {
    for (const compensate of compensations) await compensate();
    throw error;
  }
}
