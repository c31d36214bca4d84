/** The transport between the VMs of two sleds: TCP, or TLS by which each side proves that it is a sled. */

import { connect as connectTcp, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import {
  checkServerIdentity,
  connect as connectTls,
  createServer as createTlsServer,
  type PeerCertificate,
} from 'node:tls';
import type { Dispatcher } from 'undici';
import type { IdentityHolder } from '../platform/identity/holder.ts';
import { expectPeer, identifyPeer } from '../platform/identity/peer.ts';
import { splitAddress } from '../wire/sled-protocol.ts';
import type { SledIdentity } from './sled-identity.ts';

export interface PeerTransport {
  /** The id of this agent, by which others tell it from one that has its address later; `null` while it may be another one. */
  readonly agentId: () => string | null;
  /** The sled's own identity; `null` between sleds without. */
  readonly holder: IdentityHolder | null;
  /** Makes a server, not listening yet; `onConnection` gets each connection of a peer that is admitted. */
  serve(onConnection: (socket: Socket) => void): Server;
  /**
   * Whether who is at the other end of a connection that was served is the destination of this migration out of a VMM, as
   * the control plane answers. `null` between sleds without identities, which can't know.
   */
  readonly isDestination: ((socket: Socket, vmmId: string, migrationId: string) => Promise<boolean>) | null;
  /** Connects to a VM at `ip:port`; `onOpen` is called once it has shown that it is a sled's. */
  dial(address: string, onOpen: () => void): Socket;
  /** The id of the sled at the other end of a connection; `null` between sleds without identities. */
  sledAt(socket: Socket): string | null;
  /** How another sled's agent at `ip:port` is asked over HTTP. */
  agentAt(address: string): { readonly origin: string; readonly dispatcher: Dispatcher | null };
}

const AGENT_CONNECTIONS = 2;
/** How many connections a VM's own listener takes, each of which costs a file descriptor: a migration needs one. */
const PEERS_PER_VM = 8;
/** How long the handshake of TLS may take, in milliseconds. */
const HANDSHAKE_MS = 10_000;

function bounded<Listener extends Server>(server: Listener): Listener {
  server.maxConnections = PEERS_PER_VM;
  return server;
}

/** Between sleds without identities. */
export const PLAIN_TRANSPORT: PeerTransport = {
  agentId: () => null,
  holder: null,
  isDestination: null,
  sledAt: () => null,
  serve: (onConnection) => bounded(createTcpServer(onConnection)),
  dial(address, onOpen) {
    const { host, port } = splitAddress(address);
    return connectTcp(port, host).once('connect', onOpen);
  },
  agentAt: (address) => ({ origin: `http://${address}`, dispatcher: null }),
};

/** Between sleds that have joined: each side must be a sled of the same authority, and who is dialled be at its own address. */
export function identifiedTransport(identity: SledIdentity): PeerTransport {
  const isSled = expectPeer('a sled', (peer, serial) => peer.kind === 'sled' && !identity.isRevoked(serial));
  const checkPeer = (host: string, certificate: PeerCertificate) =>
    checkServerIdentity(host, certificate) ?? isSled(host, certificate);
  const agents = identity.connect(AGENT_CONNECTIONS, checkPeer);
  const peers = new WeakMap<Socket, string>();
  return {
    agentId: () => null,
    holder: identity.holder,
    sledAt: (socket) => peers.get(socket) ?? null,
    async isDestination(socket, vmmId, migrationId) {
      const peer = peers.get(socket);
      return peer !== undefined && peer === (await identity.destinationOf(vmmId, migrationId));
    },
    agentAt: (address) => ({ origin: `https://${address}`, dispatcher: agents.dispatcher }),
    serve(onConnection) {
      const server = createTlsServer(
        {
          ...identity.holder.secureContext,
          requestCert: true,
          rejectUnauthorized: true,
          handshakeTimeout: HANDSHAKE_MS,
        },
        (socket) => {
          // An error before the connection's user listens for it must not end the process.
          socket.on('error', () => {});
          const peer = identifyPeer(socket, identity.holder);
          if (peer.refusal !== null || peer.identity.kind !== 'sled' || identity.isRevoked(peer.serial)) {
            socket.destroy();
            return;
          }
          peers.set(socket, peer.identity.sledId);
          onConnection(socket);
        },
      );
      const unlisten = identity.holder.onRenewal(() => server.setSecureContext(identity.holder.secureContext));
      server.once('close', unlisten);
      return bounded(server);
    },
    dial(address, onOpen) {
      const { host, port } = splitAddress(address);
      const socket = connectTls({
        ...identity.holder.secureContext,
        host,
        port,
        checkServerIdentity: checkPeer,
      });
      return socket.once('secureConnect', () => {
        const peer = identifyPeer(socket, identity.holder);
        if (peer.identity?.kind === 'sled') peers.set(socket, peer.identity.sledId);
        onOpen();
      });
    },
  };
}
