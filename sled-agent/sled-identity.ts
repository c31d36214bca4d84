/** The identity of a sled agent that has joined: it calls and answers by it, and renews it in time. */
import { request } from 'undici';
import type { z } from 'zod';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { bundleFingerprints, makeKeyPair, makeRequest } from '../platform/identity/certificates.ts';
import { IdentityHolder } from '../platform/identity/holder.ts';
import { expectPeer } from '../platform/identity/peer.ts';
import { RenewableAgent, type RenewableAgentOptions } from '../platform/identity/renewable-agent.ts';
import { readControlPlaneAnswer } from '../wire/answer-mark.ts';
import { migrationDestination, renewAnswer, revokedCertificates } from '../wire/sled-identity.ts';
import { Disk } from './disk.ts';
import { type StoredIdentity, saveIdentity } from './identity-file.ts';

const CALL_MS = 10_000;
/** How often it asks which certificates of other sleds are good no more, in milliseconds. */
const REVOKED_EVERY_MS = 5_000;
/** How often it renews at most because the control plane trusts other authorities, in milliseconds. */
const LEARN_EVERY_MS = 15_000;

export class SledIdentity {
  readonly sledId: string;
  readonly controlPlaneUrl: string;
  readonly holder: IdentityHolder;
  readonly #agent: RenewableAgent;
  readonly #agents = new Set<RenewableAgent>();
  readonly #timer: NodeJS.Timeout;
  #revoked = new Set<string>();
  #learnAfterMs = 0;

  /** `folder`: where each renewed certificate is kept. `onTrouble` gets a message about each thing that went wrong. */
  constructor(stored: StoredIdentity, folder: string, onTrouble: (message: string) => void = () => {}) {
    this.sledId = stored.sledId;
    this.controlPlaneUrl = stored.controlPlaneUrl;
    let now = stored;
    const disk = new Disk();
    this.holder = new IdentityHolder(
      stored,
      async () => {
        const pair = await makeKeyPair();
        const { certificate, authority } = await this.#call('POST', '/sled-identity/renew', renewAnswer, {
          request: await makeRequest(pair),
        });
        const next = {
          ...now,
          privateKeyPem: pair.privateKeyPem,
          certificatePem: certificate,
          authorityPem: authority,
        };
        saveIdentity(disk, folder, next);
        now = next;
        return now;
      },
      (trouble) => onTrouble(`sled agent "${stored.name}": ${trouble}`),
    );
    this.#agent = this.connectToControlPlane(2);
    let lastRefusal: number | null = null;
    const askForRevoked = () =>
      this.#call('GET', '/sled-identity/revoked', revokedCertificates).then(
        async ({ serials, authorities }) => {
          lastRefusal = null;
          this.#revoked = new Set(serials);
          if (authorities != null)
            await this.#learnAuthorities(authorities).catch((error: unknown) =>
              onTrouble(`sled agent "${stored.name}": ${error}`),
            );
        },
        (error: unknown) => {
          // The last list holds until the control plane answers again. A refusal is passed on once, until it is another one.
          if (!(error instanceof ControlPlaneRefusal) || error.status === lastRefusal) return;
          lastRefusal = error.status;
          onTrouble(`sled agent "${stored.name}": ${error.message}`);
        },
      );
    void askForRevoked();
    this.#timer = setInterval(() => void askForRevoked(), REVOKED_EVERY_MS);
    this.#timer.unref();
  }

  /** A pool of connections to the control plane, which must show that it is. */
  connectToControlPlane(connections: number): RenewableAgent {
    return this.connect(
      connections,
      expectPeer('the control plane', (identity) => identity.kind === 'control_plane'),
    );
  }

  /** A pool of connections to whoever passes the check; cut when this identity is stopped. */
  connect(connections: number, checkServerIdentity: RenewableAgentOptions['checkServerIdentity']): RenewableAgent {
    const agent = new RenewableAgent(this.holder, { connections, checkServerIdentity });
    this.#agents.add(agent);
    return agent;
  }

  /** The sled that a migration out of a VMM goes to, by the control plane; `null` when it knows of none, or does not answer. */
  async destinationOf(vmmId: string, migrationId: string): Promise<string | null> {
    const path = `/sled-identity/vmms/${vmmId}/migrations/${migrationId}`;
    return this.#call('GET', path, migrationDestination).then(
      (answer) => answer.sled_id,
      () => null,
    );
  }

  /** Whether a certificate of this installation was revoked, by the last list of the control plane. */
  isRevoked(serial: string): boolean {
    return this.#revoked.has(serial);
  }

  /** Renews no more, and cuts its own connections. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.holder.stop();
    await Promise.all([...this.#agents].map((agent) => agent.destroy()));
  }

  /** Renews where the control plane trusts other authorities than this sled knows; while its processes differ, now and then. */
  async #learnAuthorities(authorities: readonly string[]): Promise<void> {
    const known = await bundleFingerprints(this.holder.material.authorityPem);
    if (known.join() === authorities.join() || performance.now() < this.#learnAfterMs) return;
    this.#learnAfterMs = performance.now() + LEARN_EVERY_MS;
    await this.holder.renewNow();
  }

  /** Calls the control plane. Throws {@link ControlPlaneRefusal}, and where it gave no answer, or somebody else did. */
  async #call<Value>(method: 'GET' | 'POST', path: string, schema: z.ZodType<Value>, body?: unknown): Promise<Value> {
    const received = await processDescriptors.use(async () => {
      const { statusCode: status, body: answer } = await request(this.controlPlaneUrl + path, {
        method,
        dispatcher: this.#agent.dispatcher,
        ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(CALL_MS),
      });
      return { status, text: await answer.text() };
    });
    const read = readControlPlaneAnswer(received, schema);
    if (read.kind === 'done') return read.value;
    if (read.kind === 'refused') throw new ControlPlaneRefusal(read.status, read.error.message);
    throw new Error(`what answers there is not the control plane: ${read.why}`);
  }
}

/** The control plane did not do what it was asked. */
class ControlPlaneRefusal extends Error {
  override readonly name = 'ControlPlaneRefusal';
  readonly status: number;

  constructor(status: number, message: string) {
    super(`the control plane answered ${status}: ${message}`);
    this.status = status;
  }
}
