/** The HTTP endpoint of a process's metrics, for Prometheus, and of its health, for what restarts processes. */
import { createServer } from 'node:http';
import { splitAddress } from '../../wire/sled-protocol.ts';
import { limitConnections, SHARES } from '../http/connection-limits.ts';
import { describeReadiness, type Readiness } from './readiness.ts';

/** What an endpoint serves, and where. */
interface EndpointOptions {
  /** `ip:port` to listen on; port 0 chooses a free one. */
  readonly listen: string;
  /** The metrics, in Prometheus's text format. */
  readonly metrics: () => Promise<string>;
  /** Whether the process can do its work. */
  readonly readiness: () => Promise<Readiness>;
}

/** An endpoint that listens. */
interface RunningEndpoint {
  readonly url: string;
  stop(): Promise<void>;
}

/**
 * Serves `/metrics`, `/healthz` (the process runs: 200) and `/readyz` (it can do its work: 200, else 503 and why). Throws
 * when it can't listen.
 */
export async function startEndpoint(options: EndpointOptions): Promise<RunningEndpoint> {
  const server = createServer(async (request, response) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname;
    const answer = (status: number, type: string, body: string) => {
      response.writeHead(status, { 'content-type': type });
      response.end(body);
    };
    try {
      if (path === '/healthz') return answer(200, 'text/plain', 'ok\n');
      if (path === '/metrics') return answer(200, 'text/plain; version=0.0.4; charset=utf-8', await options.metrics());
      if (path === '/readyz') {
        const { status, body } = describeReadiness(await options.readiness());
        return answer(status, 'text/plain', body);
      }
      answer(404, 'text/plain', 'there are /metrics, /healthz and /readyz\n');
    } catch (error) {
      answer(500, 'text/plain', `${error instanceof Error ? error.message : error}\n`);
    }
  });
  limitConnections(server, { share: SHARES.metrics });
  const { host, port } = splitAddress(options.listen);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: Error) =>
      reject(
        new Error(`metrics can't be shown at ${options.listen} (${error.message}): name another address in --metrics`),
      ),
    );
    server.listen(port, host, resolve);
  });
  const address = server.address();
  const chosenPort = typeof address === 'object' && address !== null ? address.port : port;
  return {
    url: `http://${options.listen.replace(/\d+$/, String(chosenPort))}`,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
