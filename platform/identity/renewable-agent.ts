import type { LookupFunction } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import { Agent } from 'undici';
import type { IdentityHolder } from './holder.ts';

/** How a pool connects. */
export interface RenewableAgentOptions {
  readonly connections: number;
  readonly keepAliveTimeoutMs?: number | undefined;
  readonly connectTimeoutMs?: number | undefined;
  /** How the names of hosts are looked up; the system's way by default. */
  readonly lookup?: LookupFunction | undefined;
  /** TLS's check of the server's identity. */
  readonly checkServerIdentity: NonNullable<ConnectionOptions['checkServerIdentity']>;
}

/**
 * A pool of connections that shows a certificate. When it is renewed, new calls go over new connections; those under way
 * end on the old ones.
 */
export class RenewableAgent {
  readonly #holder: IdentityHolder;
  readonly #options: RenewableAgentOptions;
  readonly #unlisten: () => void;
  #agent: Agent;

  constructor(holder: IdentityHolder, options: RenewableAgentOptions) {
    this.#holder = holder;
    this.#options = options;
    this.#agent = this.#make();
    this.#unlisten = holder.onRenewal(() => this.reconnect());
  }

  /** The dispatcher of the next call. */
  get dispatcher(): Agent {
    return this.#agent;
  }

  /** Lets new calls go over new connections. */
  reconnect(): void {
    const before = this.#agent;
    this.#agent = this.#make();
    before.close().catch(() => {});
  }

  /** Takes no new calls; those under way are let finish. */
  retire(): void {
    this.#unlisten();
    this.#agent.close().catch(() => {});
  }

  /** Cuts every connection. */
  async destroy(): Promise<void> {
    this.#unlisten();
    await this.#agent.destroy();
  }

  #make(): Agent {
    const { connections, keepAliveTimeoutMs, connectTimeoutMs, lookup, checkServerIdentity } = this.#options;
    return new Agent({
      connections,
      ...(keepAliveTimeoutMs === undefined ? {} : { keepAliveTimeout: keepAliveTimeoutMs }),
      connect: {
        ...(lookup === undefined ? {} : { lookup }),
        ...this.#holder.secureContext,
        checkServerIdentity,
        // A resumed session would skip the check of the certificate that is shown.
        maxCachedSessions: 0,
        ...(connectTimeoutMs === undefined ? {} : { timeout: connectTimeoutMs }),
      },
    });
  }
}
