import { SimulatedHypervisor } from '../../sled-agent/simulated-hypervisor.ts';
import { conformance } from './conformance.ts';

conformance({
  name: 'simulated',
  memoryBytes: 2 ** 30,
  outlivesAgent: false,
  hasConsole: false,
  make: () => (faults) => new SimulatedHypervisor(5, faults),
});
