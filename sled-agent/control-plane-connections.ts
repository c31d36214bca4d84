import { Agent, type Dispatcher } from 'undici';
import { errorBody, SLED_EXPUNGED } from '../wire/sled-protocol.ts';

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

/** Whether an answer's text is the control plane's word that a sled was expunged. Never throws. */
export function saysExpunged(text: string): boolean {
  try {
    return errorBody.parse(JSON.parse(text)).error_code === SLED_EXPUNGED;
  } catch {
    return false;
  }
}
