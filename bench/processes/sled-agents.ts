/** The real sled agents with simulated VMs, all in one process, at the addresses that the database names. */
import { createServer } from 'node:http';
import { freePort } from '../../platform/host/child-process.ts';
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
  /** How often each asks where instances live, in milliseconds; hardly ever by default. */
  readonly networkPollMs?: number;
}

export interface SledAgentsReady {
  readonly urls: string[];
  /** `POST /hold` holds the reports of all back, `POST /release` lets them go. */
  readonly controlUrl: string;
}

await runPart<SledAgentsInput, SledAgentsReady>(async ({ addresses, ...options }) => {
  const agents: SledAgentHandle[] = [];
  for (const [index, listen] of addresses.entries())
    agents.push(
      await startSledAgent({
        ...options,
        name: `sled-${index + 1}`,
        listen,
        testEndpoints: true,
        networkPollMs: options.networkPollMs ?? NEVER_MS,
      }),
    );
  const control = createServer((request, response) => {
    for (const agent of agents) agent.faults.holdReports(request.url === '/hold');
    response.writeHead(204).end();
  });
  const port = await freePort();
  await new Promise<void>((resolve, reject) => {
    control.once('error', reject);
    control.listen(port, '127.0.0.1', resolve);
  });
  return {
    ready: { urls: agents.map((agent) => agent.url), controlUrl: `http://127.0.0.1:${port}` },
    async stop() {
      control.closeAllConnections();
      control.close();
      await Promise.all(agents.map((agent) => agent.stop()));
    },
  };
});
