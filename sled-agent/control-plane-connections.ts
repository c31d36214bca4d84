import { Agent, type Dispatcher } from 'undici';

/** A pool of connections to the control plane; the one to use may change with each renewal of a certificate. */
export interface ControlPlaneConnections {
  readonly dispatcher: Dispatcher;
  /** Cuts every connection. */
  destroy(): Promise<void>;
}

/** In plain HTTP, for an agent without an identity. */
export function plainConnections(connections: number): ControlPlaneConnections {
  const dispatcher = new Agent({ connections });
  return { dispatcher, destroy: () => dispatcher.destroy() };
}
