import { Agent, type Dispatcher } from 'undici';
import type { ControlPlaneAnswer } from '../wire/answer-mark.ts';
import { SLED_EXPUNGED } from '../wire/sled-protocol.ts';

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

/** Whether an answer is the control plane's word that a sled was expunged. */
export function saysExpunged(answer: ControlPlaneAnswer<unknown>): boolean {
  return answer.kind === 'refused' && answer.status < 500 && answer.error.error_code === SLED_EXPUNGED;
}
