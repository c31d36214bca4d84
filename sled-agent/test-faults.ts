/** What tests do to an agent and see of it: planted faults, and VMs that die or are lost. */
import type { SledAgent } from './agent.ts';
import type { Fault, PlantedFaults } from './faults.ts';
import type { GuestLogEntry, WitnessedHypervisor } from './hypervisor.ts';

export interface TestFaults {
  /** What is returned takes the fault away again. */
  plant(planted: Fault): () => void;
  /** Takes every fault away, and lets reports go. */
  clear(): void;
  /** The agent forgets a VMM as if it had never been. */
  lose(vmmId: string): void;
  /** The guest powers itself off. */
  halt(vmmId: string): void;
  /** The VM's process dies. */
  crash(vmmId: string): void;
  /** Holds reports back, of one VMM if named. */
  holdReports(on: boolean, vmmId?: string): void;
  guestLog(): readonly GuestLogEntry[];
}

/** Joins what the agent, its hypervisor and its planted faults offer to tests. */
export function makeTestFaults(agent: SledAgent, hypervisor: WitnessedHypervisor, faults: PlantedFaults): TestFaults {
  return {
    plant: (planted) => faults.plant(planted),
    clear: () => {
      faults.clear();
      agent.reporter.hold(false);
    },
    lose: (vmmId) => void agent.lose(vmmId),
    halt: (vmmId) => hypervisor.halt(vmmId),
    crash: (vmmId) => hypervisor.crash(vmmId),
    holdReports: (on, vmmId) => agent.reporter.hold(on, vmmId),
    guestLog: () => hypervisor.guestLog,
  };
}
