/** How a server becomes a sled: by the one-time token of an invitation. */
import { type ConnectionOptions, connect, type DetailedPeerCertificate } from 'node:tls';
import { Agent, request } from 'undici';
import { isFinalRefusal } from '../model/report-answer.ts';
import { certificateFingerprint, makeKeyPair, makeRequest } from '../platform/identity/certificates.ts';
import { expectPeer } from '../platform/identity/peer.ts';
import { readControlPlaneAnswer } from '../wire/answer-mark.ts';
import { type InviteToken, readInviteToken } from '../wire/invite-token.ts';
import { type JoinRequest, joinAnswer, MAX_JOINING_VMMS } from '../wire/sled-identity.ts';
import { keepAgentId } from './agent-description.ts';
import { requireOwnPlace } from './data-place.ts';
import { Disk } from './disk.ts';
import { type StoredIdentity, saveIdentity } from './identity-file.ts';
import { recordedVmmIds } from './vmm-store.ts';

export interface JoinOptions {
  /** What `mooring sled invite` printed. */
  readonly token: string;
  /** Where the identity is kept. */
  readonly folder: string;
  /** Where the agent will listen: `host:port`. */
  readonly address: string;
  readonly threads: number;
  readonly memoryBytes: number;
  /** As an agent is started with it: the data in `folder` were moved there. */
  readonly movedData?: boolean | undefined;
  /** How long each call may take, in milliseconds; default 10000. */
  readonly callTimeoutMs?: number;
}

const CALL_MS = 10_000;
/** How often a call whose answer was lost is made again, and how long between, in milliseconds. */
const ATTEMPTS = 5;
const PAUSE_MS = 500;

/**
 * Makes a key here, has it signed by the control plane that the token names, and keeps both in `folder`. The token's
 * secret is sent only to a server whose certificate is signed by the authority that the token names. Throws, without the
 * token in the message, when the token is no good, nobody answers, `folder` can't be written,
 * or its data are a copy.
 */
export async function joinSled(options: JoinOptions): Promise<StoredIdentity> {
  const token = readInviteToken(options.token.trim());
  if (token === null)
    throw new Error(
      'token: this is not the token of an invitation: give the whole line that "mooring sled invite NAME" printed',
    );
  const pair = await makeKeyPair();
  const { address, threads, memoryBytes, folder, callTimeoutMs = CALL_MS } = options;
  // A token is good once: it is not spent for an identity that could not be kept.
  const disk = new Disk();
  disk.makeFolder(folder);
  disk.probe(folder);
  requireOwnPlace(folder, disk, options.movedData);
  const vmmIds = recordedVmmIds(folder);
  const asked: JoinRequest = {
    secret: token.secret,
    request: await makeRequest(pair),
    address,
    agent_id: keepAgentId(folder, disk),
    ...(vmmIds.length > MAX_JOINING_VMMS ? {} : { vmm_ids: vmmIds }),
    threads,
    memory: memoryBytes,
  };
  for (let attempt = 1; ; attempt++) {
    try {
      const authorityPem = await findAuthority(token, callTimeoutMs);
      const answer = await ask(token.url, authorityPem, asked, callTimeoutMs);
      const identity: StoredIdentity = {
        sledId: answer.sled_id,
        name: answer.name,
        address,
        controlPlaneUrl: token.url,
        threads,
        memoryBytes,
        privateKeyPem: pair.privateKeyPem,
        certificatePem: answer.certificate,
        authorityPem: answer.authority,
      };
      saveIdentity(disk, folder, identity);
      return identity;
    } catch (error) {
      // The same key once more is the same call.
      if (error instanceof JoinRefused || attempt >= ATTEMPTS) {
        throw new Error(`joining at ${token.url} failed: ${error instanceof Error ? error.message : error}`);
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * attempt));
    }
  }
}

/** A refusal that trying again won't change. */
class JoinRefused extends Error {
  override readonly name = 'JoinRefused';
}

/**
 * Gets the certificate of the authority that the token names out of what the server shows. Nothing is sent: the chain is
 * verified by TLS on the next connection, with this authority alone.
 */
async function findAuthority({ url, authority }: InviteToken, timeoutMs: number): Promise<string> {
  const { hostname, port } = new URL(url);
  const options: ConnectionOptions = {
    host: hostname.replace(/[[\]]/g, ''),
    port: Number(port || '443'),
    rejectUnauthorized: false,
    minVersion: 'TLSv1.3',
  };
  const leaf = await new Promise<DetailedPeerCertificate>((resolve, reject) => {
    const socket = connect(options, () => {
      resolve(socket.getPeerCertificate(true));
      socket.destroy();
    });
    // The whole handshake: a socket's own time-out begins anew with every byte.
    const timer = setTimeout(() => socket.destroy(new Error('it took too long')), timeoutMs);
    socket.once('close', () => {
      clearTimeout(timer);
      reject(new Error('it closed the connection'));
    });
    socket.once('error', reject);
  });
  for (const certificate of chainOf(leaf)) {
    const der = Uint8Array.from(certificate.raw);
    if ((await certificateFingerprint(der)) === authority)
      return `-----BEGIN CERTIFICATE-----\n${certificate.raw
        .toString('base64')
        .replace(/(.{64})/g, '$1\n')
        .trimEnd()}\n-----END CERTIFICATE-----\n`;
  }
  throw new JoinRefused(
    'the server there is not of the installation that the invitation is from: its certificate has another authority. Nothing was sent to it',
  );
}

function chainOf(first: DetailedPeerCertificate): DetailedPeerCertificate[] {
  const chain: DetailedPeerCertificate[] = [];
  for (
    let next: DetailedPeerCertificate | undefined = first;
    next?.raw !== undefined && !chain.includes(next);
    next = next.issuerCertificate
  )
    chain.push(next);
  return chain;
}

async function ask(url: string, authorityPem: string, body: JoinRequest, timeoutMs: number) {
  const dispatcher = new Agent({
    connect: {
      ca: authorityPem,
      minVersion: 'TLSv1.3',
      checkServerIdentity: expectPeer('the control plane', (identity) => identity.kind === 'control_plane'),
    },
  });
  try {
    const { statusCode, body: answer } = await request(`${url}/sled-identity/join`, {
      method: 'POST',
      dispatcher,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMs),
    });
    const read = readControlPlaneAnswer({ status: statusCode, text: await answer.text() }, joinAnswer);
    if (read.kind === 'done') return read.value;
    if (read.kind === 'none') throw new Error(`what answers there is not the control plane: ${read.why}`);
    const message = `it answered ${read.status}: ${read.error.message}`;
    throw isFinalRefusal(read.status) || read.status === 401 ? new JoinRefused(message) : new Error(message);
  } finally {
    await dispatcher.destroy();
  }
}
