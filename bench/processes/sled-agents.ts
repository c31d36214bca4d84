/** The real sled agents with simulated VMs, all in one process, at the addresses that the database names. */
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { runPart } from '../system/child.ts';

/** Polls for the network's table cost per sled and time, not per saga. */
const NEVER_MS = 3_600_000;

export interface SledAgentsInput {
  readonly controlPlaneUrl: string;
  /** `ip:port` of each. */
  readonly addresses: readonly string[];
  readonly threads: number;
  readonly memoryBytes: number;
  /** How long a transition of a VM takes, in milliseconds. */
  readonly transitionMs: number;
}

await runPart<SledAgentsInput, { urls: string[] }>(async ({ addresses, ...options }) => {
  const agents: SledAgentHandle[] = [];
  for (const [index, listen] of addresses.entries())
    agents.push(
      await startSledAgent({
        ...options,
        name: `sled-${index + 1}`,
        listen,
        testEndpoints: true,
        networkPollMs: NEVER_MS,
      }),
    );
  return {
    ready: { urls: agents.map((agent) => agent.url) },
    stop: () => Promise.all(agents.map((agent) => agent.stop())),
  };
});
